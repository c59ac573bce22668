"""`segdeploy history`: did latency change for good, and in which commits?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit, say

if TYPE_CHECKING:
    from segdeploy.workflows.history_steps import Series


@app.command()
def history(
    file: Annotated[Path, typer.Argument(help="The history.")] = Path("bench.jsonl"),
    *,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Add the bench.json of this folder first; may be repeated."),
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Only this branch's entries.")] = None,
    min_change: Annotated[str, typer.Option(help="Smallest step that is told.")] = "1%",
    fail_on_step: Annotated[
        bool,
        typer.Option("--fail-on-step", help="Exit 1 if the newest level is a slower one."),
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write a page with a plot of each series.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Find lasting steps of latency in bench.jsonl, with the commits that can have made them."""
    from segdeploy.core.errors import ConfigError
    from segdeploy.core.limits import parse_share
    from segdeploy.workflows.history import append_history, entry_of_folder, load_history
    from segdeploy.workflows.history_steps import read_series

    least = parse_share(min_change, "--min-change")
    if least is None:
        raise ConfigError("--min-change is a share.", hint="Write e.g. 2%.")
    if page is not None and page.resolve() == file.resolve():
        raise ConfigError(f"--page {page} is the history itself.", hint="Give another file.")
    if add:
        for entry in append_history(file, [entry_of_folder(path) for path in add]):
            say(f"note: {file} has this bench of {entry.model}/{entry.artifact} already")
    entries, num_damaged = load_history(file)
    if num_damaged:
        say(f"note: {num_damaged} lines of {file} are no entries")
    if not entries:
        say(f"note: {file} has no entries yet")
    found = read_series(entries, branch=branch, least_change=least)
    if page is not None:
        _write_page(page, file, found)
    emit([series.to_dict() for series in found], as_json, lambda: _render(found))
    worse = [series for series in found if series.steps and series.steps[-1].is_slower]
    if fail_on_step and worse:
        say("error: slower than before: " + ", ".join(series.name for series in worse))
        raise typer.Exit(1)


def _write_page(page: Path, file: Path, found: list[Series]) -> None:
    from segdeploy.core.files import write_bytes
    from segdeploy.measure.steps import levels
    from segdeploy.report.history_page import HistoryFigure, render_history

    figures = []
    for series in found:
        medians = [entry.p50_ms for entry in series.entries]
        level = levels(medians, [each.step for each in series.steps])
        told = [each.reason for each in series.steps]
        figures.append(HistoryFigure(series.name, medians, level, told))
    write_bytes(page, render_history(f"History of {file.name}", figures).encode(errors="replace"))


def _render(found: list[Series]) -> None:
    for series in found:
        last = series.entries[-1]
        print(f"{series.name}: {len(series.entries)} entries, last {last.p50_ms:.3g} ms")  # noqa: T201
        for each in series.steps:
            print(f"  {each.reason}")  # noqa: T201
            for commit in each.commits or ():
                print(f"    {commit}")  # noqa: T201
