"""`segdeploy evaluate`: mIoU, pixel accuracy and per-class scores on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit

if TYPE_CHECKING:
    from segdeploy.core.results import EvalResult


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Checkpoint or artifact folder.")],
    *,
    data: Annotated[str, typer.Option(help="NAME[:ROOT], e.g. camvid:data/camvid.")],
    split: Annotated[str, typer.Option(help="Which part of the data.")] = "val",
    nproc: Annotated[int, typer.Option(help="Number of processes.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    save: Annotated[bool, typer.Option(help="Write eval.json and pictures.")] = True,
    as_json: JSON = False,
) -> None:
    """Score a checkpoint or artifact against labels."""
    from segdeploy.evaluate import evaluate as run_evaluate
    from segdeploy.evaluate import is_main
    from segdeploy.frameworks.progress import progress_bars

    with progress_bars() as advance:
        result = run_evaluate(
            path,
            data=data,
            split=split,
            nproc=nproc,
            device=device,
            limit=limit,
            save=save,
            progress=lambda done, total: advance("evaluate", done, total),
        )
    if is_main():
        emit(result.to_dict(), as_json, lambda: _render(result))


def _render(result: EvalResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{result.target} on {result.data}, {result.num_images} images")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("accuracy", justify="right")
    accuracy = result.class_accuracy
    for name, iou in result.class_iou.items():
        table.add_row(escape(name), _percent(iou), _percent(accuracy[name]))
    table.add_section()
    table.add_row("mean IoU / pixels", _percent(result.mean_iou), _percent(result.pixel_accuracy))
    console = Console()
    console.print(table)
    if result.absent_classes:
        console.print(f"absent, not counted: {', '.join(result.absent_classes)}", markup=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
