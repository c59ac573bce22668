"""`segdeploy report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeploy.cli.app import JSON, app, emit

if TYPE_CHECKING:
    from segdeploy.report.write import Written


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or the `out` of `segdeploy run`.")],
    as_json: JSON = False,
) -> None:
    """Write report.html and report.md into RUN, or into each model's folder of an `out`.

    --json prints one document; of an `out`, a list of them.
    """
    from segdeploy.report import write_reports

    found = write_reports(run)
    documents = [_document(written) for written in found]

    def render() -> None:
        for each in documents:
            print(f"{each['table']}\n{each['report']}")  # noqa: T201

    is_one = found[0].page.parent == run
    emit(documents[0] if is_one else documents, as_json, render)


def _document(written: Written) -> dict[str, Any]:
    return {
        "report": str(written.page),
        "markdown": str(written.markdown),
        "table": written.markdown.read_text(encoding="utf-8"),
        "worth": [one.to_dict() for one in written.worth],
    }
