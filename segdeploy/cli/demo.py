"""`segdeploy demo`: the whole chain on the embedded data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit, say

if TYPE_CHECKING:
    from segdeploy.workflows import DemoResult


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    as_json: JSON = False,
) -> None:
    """Train, export, verify, evaluate, bench and report a small model, in a minute or two."""
    from segdeploy.workflows import demo as run

    result = run(out, say=say)
    emit(result.to_dict(), as_json, lambda: _render(result))


def _render(result: DemoResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "mIoU", "p50 ms", "verified")
    for row in result.rows:
        verdict = {None: "reference", True: "passed", False: "FAILED"}[row["passed"]]
        table.add_row(row["target"], f"{row['mean_iou']:.4f}", f"{row['latency_ms']:.2f}", verdict)
    console = Console()
    console.print(table)
    console.print(f"{result.seconds:.0f} s. The report: {result.report}", soft_wrap=True)
