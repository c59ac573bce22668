"""`segdeploy show`: one model's facts, and where its parameters, work and memory lie.

Of an int8 artifact it shows instead what became of every node, and why.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit
from segdeploy.cli.parsing import parse_size

if TYPE_CHECKING:
    from segdeploy.zoo.cost import BlockCost
    from segdeploy.zoo.describe import ModelDescription


@app.command()
def show(
    model: Annotated[
        str,
        typer.Argument(help="Name, package.module:callable, checkpoint or int8 artifact folder."),
    ],
    *,
    size: Annotated[str | None, typer.Option(help="HxW; default: the design size.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Default: the checkpoint's, else 21.")
    ] = None,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Show a model's blocks: parameters, multiply-adds, activation memory of one image."""
    placement = _read_placement(Path(model))
    if placement is not None:
        emit(placement, as_json, lambda: _render_placement(placement))
        return
    from segdeploy.frameworks.torch import require_torch

    require_torch("torchvision", "safetensors")
    from segdeploy.zoo.describe import describe_model

    found = describe_model(model, size=parse_size(size), num_classes=num_classes)
    emit(found.to_dict(), as_json, lambda: _render(found))


def _render(found: ModelDescription) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    spec, (height, width) = found.spec, found.size
    table = Table(title=f"{escape(spec.name)}, {found.num_classes} classes, {height}x{width}")
    table.add_column("block", overflow="fold")
    for heading in ("parameters", "GMAC", "activations MiB"):
        table.add_column(heading, justify="right")
    for block in found.cost.blocks:
        parent, _, inner = block.name.rpartition(".")
        table.add_row(f"  {escape(inner)}" if parent else escape(inner), *_figures(block))
    table.add_section()
    table.add_row("total", *_figures(found.cost.total))
    console = Console(highlight=False)
    console.print(table)
    facts = {
        "design size": "x".join(map(str, spec.input_size)),
        "output stride": spec.output_stride,
        "source": spec.source,
        "family": spec.family,
    }
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    console.print(told, markup=False)


def _figures(block: BlockCost) -> tuple[str, str, str]:
    return f"{block.num_parameters:,}", f"{block.macs / 1e9:.3f}", f"{block.activation_mib:.1f}"


def _read_placement(folder: Path) -> dict[str, Any] | None:
    """Return what the folder of an int8 graph says of its nodes; None for anything else."""
    from segdeploy.core.folder import check_companion, load_artifact
    from segdeploy.core.results import read_result

    nodes = read_result(folder / "placement.json") if folder.is_dir() else None
    if nodes is None:
        return None
    artifact = load_artifact(folder)
    check_companion(artifact, "placement.json")
    return {**artifact.manifest.options.get("int8", {}), **nodes}


def _render_placement(placement: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"int8 policy {escape(str(placement.get('policy', 'unknown')))}")
    for heading in ("node", "operator", "group", "choice", "reason"):
        table.add_column(heading, overflow="fold")
    for node in placement["nodes"]:
        table.add_row(*(escape(node[k]) for k in ("node", "operator", "group", "choice", "reason")))
    console = Console(highlight=False)
    console.print(table)
    between = placement.get("float_activations") or {}
    left = ", ".join(f"{count} {name}" for name, count in between.items()) or "nothing"
    console.print(f"{placement.get('borders')} Q or DQ at borders; float between int8: {left}")
