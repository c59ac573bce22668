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
    from segdeploy.report import write_report

    written = write_report(run)
    text = written.markdown.read_text(encoding="utf-8")

    def render() -> None:
        print(f"{text}\n{written.page}")  # noqa: T201

    document = {
        "report": str(written.page),
        "markdown": str(written.markdown),
        "table": text,
        "worth": [one.to_dict() for one in written.worth],
    }
    emit(document, as_json, render)
