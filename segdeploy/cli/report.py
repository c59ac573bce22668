"""`segdeploy report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdeploy.cli.app import JSON, app, emit


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, with checkpoint and artifacts.")],
    as_json: JSON = False,
) -> None:
    """Write report.html and report.md into RUN."""
    from segdeploy.report import report as write_report

    page = write_report(run)
    markdown = page.with_suffix(".md")
    text = markdown.read_text(encoding="utf-8")

    def render() -> None:
        print(f"{text}\n{page}")  # noqa: T201

    emit({"report": str(page), "markdown": str(markdown), "table": text}, as_json, render)
