"""`segdeploy evaluate`: mIoU with its interval, accuracies and per-class scores on labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit
from segdeploy.cli.parsing import (
    OVERLAP_HELP,
    THRESHOLD_HELP,
    TTA_HELP,
    WINDOW_HELP,
    parse_views,
    parse_window,
)

if TYPE_CHECKING:
    from rich.table import Table

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
    boundary: Annotated[bool, typer.Option(help="Also score the outlines; slow.")] = False,
    tta: Annotated[str | None, typer.Option(help=TTA_HELP)] = None,
    sliding_window: Annotated[str | None, typer.Option(help=WINDOW_HELP)] = None,
    overlap: Annotated[float | None, typer.Option(help=OVERLAP_HELP)] = None,
    threshold: Annotated[float | None, typer.Option(help=THRESHOLD_HELP)] = None,
    instances: Annotated[
        str | None,
        typer.Option(help="segm, bbox or segm,bbox: also COCO's AP and AR of connected parts."),
    ] = None,
    save: Annotated[bool, typer.Option(help="Write eval.json and pictures.")] = True,
    _allow_code: ALLOW_CODE = False,
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
            boundary=boundary,
            tta=parse_views(tta),
            sliding_window=parse_window(sliding_window, overlap),
            threshold=threshold,
            instances=[name.strip() for name in instances.split(",")] if instances else [],
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
    columns = {"IoU": result.class_iou, "accuracy": result.class_accuracy}
    intervals = result.class_iou_ci or {}
    if result.class_boundary_iou and result.class_boundary_f:
        columns["boundary IoU"] = result.class_boundary_iou
        columns["boundary F"] = result.class_boundary_f
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("IoU, 95 % interval", justify="right", min_width=13)
    for name in result.classes:
        shown = (_percent(scores[name]) for scores in columns.values())
        table.add_row(escape(name), *shown, _ends(intervals.get(name)))
    table.add_section()
    table.add_row("mean IoU / pixels", _percent(result.mean_iou), _percent(result.pixel_accuracy))
    means = [result.mean_iou, result.mean_accuracy, result.boundary_iou, result.boundary_f]
    table.add_row("mean", *(_percent(mean) for mean in means[: len(columns)]))
    console = Console()
    console.print(table)
    for line in _summary(result):
        console.print(line, markup=False, highlight=False)
    if result.instances:
        console.print(_instance_table(result.instances))
    if result.absent_classes:
        console.print(f"absent, not counted: {', '.join(result.absent_classes)}", markup=False)


def _instance_table(instances: dict[str, dict[str, Any]]) -> Table:
    """Return COCO's twelve numbers, a column for each IoU type."""
    from rich.table import Table

    table = Table("instances", *instances)
    for name in next(iter(instances.values())):
        if name != "class_ap":
            shown = (_percent(scores[name]) for scores in instances.values())
            table.add_row(name.replace("_", " ").upper(), *shown)
    return table


def _summary(result: EvalResult) -> Iterator[str]:
    """Yield how images were run, if not plainly, and the scores of the whole, one line a topic."""
    if result.tta:
        scales = ", ".join(f"{scale:g}" for scale in result.tta["scales"])
        yield f"averaged over the scales {scales}{' and flips' * result.tta['flip']}"
    if result.sliding_window:
        height, width = result.sliding_window["size"]
        yield f"windows of {height}x{width}, overlap {result.sliding_window['overlap']:g}"
    if result.threshold is not None:
        yield f"yes above the probability {result.threshold:g}"
    if result.mean_iou_ci:
        yield f"mean IoU, 95 % interval over images: {_ends(result.mean_iou_ci)}"
    if result.worst:
        shown = (f"{image.name} {_percent(image.mean_iou)}" for image in result.worst[:3])
        yield f"worst images: {', '.join(shown)}"
    yield (
        f"mean Dice {_percent(result.mean_dice)}, "
        f"frequency-weighted IoU {_percent(result.frequency_weighted_iou)}"
    )
    if result.task == "binary":
        text = f"foreground IoU {_percent(result.foreground_iou)}"
        text += f", Dice {_percent(result.foreground_dice)}"
        if result.mae is not None:
            text += f", MAE {result.mae:.4f}, max F {_percent(result.max_f)}"
        yield text


def _ends(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f}-{_percent(interval[1])}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
