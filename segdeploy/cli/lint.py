"""`segdeploy lint`: what a runtime would refuse in an ONNX graph, and what to do. Exit 1 if so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit
from segdeploy.cli.parsing import parse_sizes

if TYPE_CHECKING:
    from segdeploy.workflows.lint import LintReport


@app.command()
def lint(
    model: Annotated[Path, typer.Argument(help="ONNX file, or an artifact folder with one.")],
    *,
    runtime: Annotated[
        str, typer.Option("--for", help="tensorrt, openvino, onnxruntime, litert or coreml.")
    ],
    size: Annotated[
        str, typer.Option(help="HxW or a range HxW..HxW that it is to run at.")
    ] = "dynamic",
    as_json: JSON = False,
) -> None:
    """Say what a runtime would refuse in a graph, without that runtime."""
    from segdeploy.workflows.lint import lint as run_lint

    report = run_lint(model, runtime, parse_sizes(size))
    emit(report.to_dict(), as_json, lambda: _render(report))
    if not report:
        raise typer.Exit(1)


def _render(report: LintReport) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    for finding in report.findings:
        style = "red" if finding.level == "error" else "yellow"
        console.print(f"{finding.level}: {finding.rule}", style=style, end="")
        where = " ".join(part for part in (finding.op, finding.node) if part)
        inside = f" in {finding.module}" if finding.module else ""
        console.print(f"  {where}{inside}".rstrip())
        console.print(f"    {finding.message}")
        console.print(f"    {finding.cure}")
    errors = sum(finding.level == "error" for finding in report.findings)
    console.print(
        f"{report.model} for {report.runtime}: {errors} errors, "
        f"{len(report.findings) - errors} warnings"
    )
