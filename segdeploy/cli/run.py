"""`segdeploy run`: what one file asks for, from checkpoints to gates and reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.ci_files import write_ci_files

if TYPE_CHECKING:
    from segdeploy.workflows.run import PlannedArtifact
    from segdeploy.workflows.run_result import RunResult


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="What to do, in TOML; flags override it.")] = Path(
        "segdeploy.toml"
    ),
    *,
    out: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Folder of an earlier run, or an artifact, to gate against.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="NAME[:ROOT] that is evaluated on.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="NAME[:ROOT] whose train images choose int8 ranges.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Per runtime; default: all cores, in a gate the free ones.")
    ] = None,
    max_slowdown: Annotated[str | None, typer.Option(help="The gate's limit of latency.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time of one gate, e.g. 60s.")] = None,
    history: Annotated[str | None, typer.Option(help="File that gets a line per bench.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Stages, of export,evaluate,bench,gate,report.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do again what is unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write a summary in Markdown.")] = None,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Export, verify, evaluate, bench, gate and report all that segdeploy.toml asks for.

    Exit 1: a check failed; 2 or 4: something could not be done; 3: a gate is inconclusive.
    """
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.workflows.run import plan_run
    from segdeploy.workflows.run import run as run_all
    from segdeploy.workflows.run_config import load_run_config
    from segdeploy.workflows.summary import check_apart, check_outputs

    stages = None if only is None else [name.strip() for name in only.split(",")]
    flags: dict[str, dict[str, Any]] = {
        "run": {"out": out, "data": data, "calibration": calibration, "stages": stages},
        "bench": {"threads": threads},
        "gate": {"baseline": baseline, "latency": max_slowdown, "budget": budget},
        "history": {"file": history},
    }
    settings = load_run_config(config, flags)
    if dry_run:
        planned = plan_run(settings)
        emit([each.to_dict() for each in planned], as_json, lambda: _render_plan(planned))
        return
    lines = Path(settings.history.file) if settings.history.file else None
    check_apart([junit, summary, lines], [config, *settings.inputs])
    check_outputs(junit, summary)
    with progress_bars() as advance:
        result = run_all(settings, force=force, say=say, progress=advance)
    if result.is_unchanged:
        say("nothing has changed: everything was reused")
    emit(result.to_dict(), as_json, lambda: _render(result))
    for outcome in result.outcomes:
        if outcome.exit_code:
            word = outcome.kind or outcome.status
            say(f"error: {outcome.place}: {word}: {outcome.reason}")
    is_written = _write(result, junit, summary)
    code = result.exit_code if is_written or result.exit_code == 1 else 2
    if code:
        raise typer.Exit(code)


def _write(result: RunResult, junit: Path | None, summary: Path | None) -> bool:
    """Write what CI systems read; return whether all could be written."""
    from segdeploy.workflows.junit import run_cases
    from segdeploy.workflows.summary import render_run

    return write_ci_files(run_cases(result), render_run(result), junit, summary)


def _render_plan(planned: list[PlannedArtifact]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="plan")
    for heading in ("model", "artifact", "export", "stages"):
        table.add_column(heading, overflow="fold")
    for each in planned:
        table.add_row(
            escape(each.model), escape(each.artifact), escape(each.export), ", ".join(each.stages)
        )
    Console().print(table)


_COLOURS = {
    "passed": "green", "failed": "red", "error": "red", "inconclusive": "yellow", "skipped": "dim",
}  # fmt: skip


def _render(result: RunResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(str(result.out))}: {result.verdict}")
    for heading in ("artifact", "stage", "verdict", "s", ""):
        table.add_column(heading, overflow="fold")
    for outcome in result.outcomes:
        colour = _COLOURS[str(outcome.status)]
        table.add_row(
            escape("/".join(part for part in (outcome.model, outcome.artifact) if part)),
            outcome.stage,
            f"[{colour}]{outcome.status}[/]",
            "reused" if outcome.reused else f"{outcome.seconds:.1f}",
            escape(outcome.reason.splitlines()[0] if outcome.reason else ""),
        )
    Console().print(table)
