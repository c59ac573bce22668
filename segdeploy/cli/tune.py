"""`segdeploy tune`: find by measuring which nodes int8 shall quantise on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.parsing import parse_size

if TYPE_CHECKING:
    from segdeploy.workflows.tune import TuneResult


@app.command()
def tune(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, e.g. RUN/checkpoint.")],
    *,
    target: Annotated[str, typer.Option(help="onnx-int8 or openvino-int8.")],
    calibration: Annotated[
        str, typer.Option(help="NAME[:ROOT] whose train images choose int8 ranges.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Policy to write; default: RUN/TARGET.policy.toml.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Where variants are kept; default: RUN/tune.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW; default: dynamic.")] = None,
    calibration_images: Annotated[int, typer.Option(help="How many of them.")] = 32,
    data: Annotated[
        str | None, typer.Option(help="NAME[:ROOT] whose val images count flips.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of the runtime; default: all cores.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Group to change; may be repeated; default: all.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time of one comparison, per artifact.")] = 6.0,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Measure latency and flips per group of nodes, and write the best int8 policy."""
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.workflows.tune import TunePlan, tune

    run = checkpoint.resolve().parent
    plan = TunePlan(
        checkpoint=checkpoint,
        target=target,
        calibration=calibration,
        work=work or run / "tune",
        size=parse_size(size),
        num_calibration_images=calibration_images,
        data=data,
        threads=threads,
        seconds=seconds,
        groups=tuple(group or ()),
    )
    with progress_bars() as advance:
        found = tune(plan, out or run / f"{target}.policy.toml", progress=advance, report=say)
    emit(found.to_dict(), as_json, lambda: _render(found))


def _render(found: TuneResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for heading in ("change", "time x", "interval", "flips", "kept"):
        table.add_column(heading, overflow="fold")
    for trial in found.policy.evidence["trials"]:
        low, high = trial["interval"] or (None, None)
        table.add_row(
            trial["change"],
            "-" if trial["ratio"] is None else f"{trial['ratio']:.3f}",
            "-" if low is None else f"{low:.3f}..{high:.3f}",
            "-" if trial["flip_rate"] is None else f"{trial['flip_rate']:.2%}",
            f"[green]{trial['reason']}[/]" if trial["kept"] else escape(trial["reason"]),
        )
    console = Console()
    console.print(table)
    console.print(f"written: {escape(str(found.path))}")
