"""`segdeploy compare`: who is worth it among artifacts, and which one meets a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from segdeploy.report.budget import Choice
    from segdeploy.report.compared import Comparison

_FILE_WIDTH = 120  # Of a table in a file or a CI log, which do not wrap.


@app.command()
def compare(
    paths: Annotated[
        list[Path], typer.Argument(help="Runs, artifact folders, or the `out` of a `run`.")
    ],
    budget: Annotated[
        str | None,
        typer.Option(help="latency=8ms,miou=-0.5,size=5MiB,memory=200MiB: pick one, or exit 1."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots there.")] = None,
    as_json: JSON = False,
) -> None:
    """Compare what was measured of artifacts: Pareto front, and what each is worth."""
    from segdeploy.core.errors import ConfigError
    from segdeploy.report.budget import Budget
    from segdeploy.workflows.compare import compare as run_compare

    found = run_compare(
        paths, budget=Budget.parse(budget) if budget is not None else None, page=html
    )
    emit(found.to_dict(), as_json, lambda: _render(found))
    for text in (*found.notes, *found.remarks, *found.problems):
        say(f"note: {text}")
    if html is not None:
        say(f"written: {html}")
    if found.choice is not None and not found.choice.is_decidable:
        raise ConfigError(
            found.choice.reason, hint="Measure them in one run: segdeploy bench A B ..."
        )
    if found.choice is not None and not found.choice:
        raise typer.Exit(1)


def _render(found: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from segdeploy.report.compare_page import FIGURES, figures

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for number, group in enumerate(found.groups, start=1):
        words = " · ".join(group.conditions.words) if group.conditions else "not measured"
        console.print(f"group {number}: {words}", soft_wrap=True)
        table = Table(box=box.SIMPLE)
        table.add_column("artifact", overflow="fold")
        table.add_column("standing")
        for heading in FIGURES:
            table.add_column(heading, justify="right")
        for row in group.rows:
            standing = found.worth[row.name].standing if row.name in found.worth else "reference"
            table.add_row(row.name, str(standing), *figures(row))
        console.print(table)
    for one in found.worth.values():
        console.print(f"{one.name}: {one.advice}", soft_wrap=True)
    if found.choice is not None:
        _render_choice(found.choice, console)


def _render_choice(choice: Choice, console: Console) -> None:
    console.print(f"\nBudget: {choice.budget.words}", soft_wrap=True)
    for name, misses in choice.misses.items():
        said = "; ".join(miss.reason for miss in misses)
        console.print(f"  {name} misses it: {said}", soft_wrap=True)
    console.print(f"-> {choice.reason}", soft_wrap=True)
