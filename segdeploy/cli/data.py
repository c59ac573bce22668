"""`segdeploy data check`: is a data set readable, labelled, and without leaks?"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from segdeploy.data.findings import DataCheck, Finding, SplitFacts

_MOST_SHOWN = 10

data = typer.Typer(
    name="data", help="Labelled data: check it (as JSON with --json).", no_args_is_help=True
)
app.add_typer(data)


@data.callback()
def _group() -> None:
    """Keep `check` a word of its own: of one command typer would make the group itself."""


@data.command()
def check(
    dataset: Annotated[
        str, typer.Argument(metavar="D", help="NAME[:ROOT], e.g. voc:data/VOC2012.")
    ],
    *,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a picture of each split.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Read every sample: classes, sizes, colours, damaged files, wrong labels, leaks."""
    from segdeploy.data.check import check_data
    from segdeploy.data.sheet import write_sheets
    from segdeploy.frameworks.progress import progress_bars

    with progress_bars() as advance:
        result = check_data(dataset, split or (), progress=advance)
    emit(result.to_dict(), as_json, lambda: _render(result))
    if out is not None:
        for file in write_sheets(result, out):
            say(f"wrote {file}")
    if not result:
        raise typer.Exit(1)


def _render(result: DataCheck) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"{result.data}, {result.task}", markup=False)
    for facts in result.splits:
        console.print(_describe(facts), markup=False)
    _render_classes(console, result.splits)
    for title, style, findings in (
        ("problem", "red", result.problems), ("warning", "yellow", result.warnings),
    ):  # fmt: skip
        _render_findings(console, title, style, findings)
    console.print("no problems" if result else f"{len(result.problems)} problems", markup=False)


def _describe(facts: SplitFacts) -> str:
    if not facts.heights or not facts.widths:
        return f"{facts.split}: none of {facts.num_images} images can be used"
    count = f"{facts.num_images:,} images"
    if facts.num_read < facts.num_images:
        count = f"{facts.num_read:,} of {count} can be used"
    (low, high), (left, right) = facts.heights, facts.widths
    size = f"{low}x{left}" if (low, left) == (high, right) else f"{low}..{high} x {left}..{right}"
    mean, std = (" ".join(f"{v:.3f}" for v in values or []) for values in (facts.mean, facts.std))
    ignored = f"{100 * (facts.ignored_share or 0):.2f} % ignored"
    return f"{facts.split}: {count}, {size} (height x width), {ignored}, mean {mean}, std {std}"


def _render_classes(console: Console, splits: tuple[SplitFacts, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("class")
    for facts in splits:
        table.add_column(f"{facts.split} pixels", justify="right")
        table.add_column("images", justify="right")
    for index, name in enumerate(splits[0].classes):
        cells = [
            cell
            for facts in splits
            for cell in (_percent(facts.class_share[name]), f"{facts.class_images[index]:,}")
        ]
        table.add_row(escape(name), *cells)
    console.print(table)


def _render_findings(console: Console, title: str, style: str, findings: list[Finding]) -> None:
    for kind, group in groupby(findings, key=lambda finding: finding.kind):
        members = list(group)
        for finding in members[:_MOST_SHOWN]:
            console.print(f"{title} ({kind.replace('_', ' ')}): ", style=style, end="")
            console.print(finding.message, markup=False, soft_wrap=True)
        if len(members) > _MOST_SHOWN:
            console.print(f"... and {len(members) - _MOST_SHOWN} more of this kind; see --json")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"
