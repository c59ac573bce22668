"""Write `report.html` and `report.md` into the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from segdeploy.core.files import write_bytes
from segdeploy.core.lock import run_lock
from segdeploy.report.advice import Worth
from segdeploy.report.collect import collect_run, find_runs
from segdeploy.report.comparison import find_worth
from segdeploy.report.page import render_page
from segdeploy.report.table import render_markdown

PAGE, MARKDOWN = "report.html", "report.md"


@dataclass(frozen=True)
class Written:
    """A report's page and table, and what it says of each artifact's worth."""

    page: Path
    markdown: Path
    worth: list[Worth]


def write_reports(place: Path) -> list[Written]:
    """Write the report of a run, or of each run in the `out` of `segdeploy run`."""
    return [write_report(run) for run in find_runs(place)]


def report(run: Path) -> Path:
    """Write the report of a run and return the path of its page; `report.md` lies beside it.

    Example:
        `report(Path("runs/demo"))`

    Args:
        run: The folder that holds the checkpoint and the artifacts.

    Raises:
        ArtifactError: If no checkpoint or artifact is in it, or it cannot be written.
        RunLockedError: If another process works in it.
    """
    return write_report(run).page


def write_report(run: Path) -> Written:
    """Write the report of a run and return what was written; else as `report`."""
    summary = collect_run(run)  # Before the lock, which would make a missing folder.
    made = f"segdeploy {metadata.version('segdeploy')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with run_lock(run):
        write_bytes(run / MARKDOWN, render_markdown(summary).encode(errors="replace"))
        write_bytes(run / PAGE, render_page(summary, made).encode(errors="replace"))
    return Written(run / PAGE, run / MARKDOWN, find_worth(summary.rows))
