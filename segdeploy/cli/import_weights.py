"""`segdeploy import`: weights of another library become a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.core.task import Task


@app.command("import")
def import_weights(
    weights: Annotated[Path, typer.Argument(help=".pth, .pt or .safetensors file.")],
    *,
    model: Annotated[
        str, typer.Option(help="See 'segdeploy list models'; or package.module:callable.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write, e.g. RUN/checkpoint.")],
    classes: Annotated[
        str | None, typer.Option(help="File with one class name a line, or NAME,NAME,...")
    ] = None,
    task: Annotated[
        Task | None, typer.Option(help="Default: binary for one class, else multiclass.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="R,G,B subtracted, of 0..1; default: ImageNet's.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="R,G,B divided by.")] = None,
    note: Annotated[str, typer.Option(help="Kept in the manifest, e.g. the licence.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --out.")] = False,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Make a checkpoint of trained weights; the class count is read from them."""
    from segdeploy.cli.parsing import parse_names, parse_normalization
    from segdeploy.frameworks.torch import require_torch

    require_torch("torchvision", "safetensors")
    from segdeploy.zoo.importing import import_notes
    from segdeploy.zoo.importing import import_weights as run

    checkpoint = run(
        weights,
        model=model,
        out=out,
        classes=parse_names(classes),
        task=task,
        preprocess=parse_normalization(mean, std),
        note=note,
        force=force,
    )
    for each in import_notes(checkpoint):
        say(f"note: {each}")
    manifest = checkpoint.manifest
    document = {
        "path": str(checkpoint.path),
        "model": manifest.model,
        "task": manifest.task,
        "classes": manifest.classes,
        "notes": import_notes(checkpoint),
    }
    emit(
        document,
        as_json,
        lambda: say(f"checkpoint: {checkpoint.path} ({len(manifest.classes)} classes)"),
    )
