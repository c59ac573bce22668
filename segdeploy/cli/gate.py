"""`segdeploy gate`: is the candidate worse than the baseline? Exit 0 no, 1 yes, 3 cannot tell."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.ci_files import write_ci_files
from segdeploy.cli.parsing import parse_size
from segdeploy.core.errors import ConfigError

if TYPE_CHECKING:
    from segdeploy.core.gate import GateResult
    from segdeploy.core.limits import GateLimits

CONFIG = Path("segdeploy.toml")


@app.command()
def gate(
    baseline: Annotated[
        Path, typer.Argument(help="Artifact or checkpoint folder, or a stored bench.json.")
    ],
    candidate: Annotated[Path, typer.Argument(help="Artifact or checkpoint folder.")],
    *,
    max_slowdown: Annotated[
        str | None, typer.Option(help="Largest allowed growth of latency; default 5%.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=SHARE of throughput, memory, size, cold_start; mean_iou=POINTS. Repeatable."
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time of measuring; default 60s.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Its table `gate` holds limits; default: segdeploy.toml, if here."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per call.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Per runtime; default: free cores.")] = None,
    streams: Annotated[int | None, typer.Option(help="Calls at once, for throughput.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[
        str | None, typer.Option(help="NAME[:ROOT] whose images parity is checked on.")
    ] = None,
    parity: Annotated[bool, typer.Option(help="Compare the answers before the timing.")] = True,
    allow_different_machine: Annotated[
        bool,
        typer.Option(
            "--allow-different-machine",
            help="Compare with a bench.json of another machine; its speed fails nothing.",
        ),
    ] = False,
    save: Annotated[bool, typer.Option(help="Write gate.json into the candidate.")] = True,
    junit: Annotated[Path | None, typer.Option(help="Write the verdict as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the verdict as Markdown.")] = None,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Compare a candidate's latency (and more) with a baseline's, interleaved, now."""
    from segdeploy.core.limits import parse_seconds
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.workflows.gate import BUDGET_S, GatePlan
    from segdeploy.workflows.gate import gate as run_gate
    from segdeploy.workflows.summary import check_apart, check_outputs

    table = _read_table(config)
    plan = GatePlan(
        size=parse_size(size),
        batch_size=batch_size,
        threads=threads,
        device=device,
        budget_s=parse_seconds(budget or table.get("budget", BUDGET_S)),
        streams=_whole(table.get("streams", 1)) if streams is None else streams,
        data=data,
        check_parity=parity,
        allow_different_machine=allow_different_machine
        or _is_true(table.get("allow_different_machine", False)),
    )
    limits = _parse_limits(table, max_slowdown, limit or [])
    check_apart((junit, summary), _read_files(baseline, candidate, config or CONFIG))
    check_outputs(junit, summary)
    with progress_bars() as advance:
        result = run_gate(
            baseline, candidate, plan=plan, limits=limits, save=save,
            progress=lambda done: advance("gate", done, 1.0),
        )  # fmt: skip
    emit(result.to_dict(), as_json, lambda: _render(result))
    code = result.verdict.exit_code
    if code:
        say(f"error: {result.verdict}: {result.reason}")
    is_written = _write(result, junit, summary) and result.environment.get("is_saved", True)
    if code or not is_written:
        raise typer.Exit(code if is_written or code == 1 else 2)


def _read_table(config: Path | None) -> dict[str, Any]:
    """Return the `[gate]` table of a file that was named, or of the one that is here."""
    path = config or CONFIG
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if config is None:
            return {}
        raise ConfigError(f"There is no {config}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    table = plain.get("gate", {})
    if not isinstance(table, dict):
        raise ConfigError(f"[gate] of {path} is not a table.")
    if table:
        say(f"limits of {path}")
    return table


def _read_files(*places: Path) -> list[Path]:
    """Return the files that a gate reads or writes itself: of a folder, all that it holds."""
    from segdeploy.workflows.gate import RESULT

    return [file for place in places for file in (place, place / RESULT, *place.glob("*"))]


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"streams = {value!r} is no whole number.")
    return value


def _is_true(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"allow_different_machine = {value!r} is neither true nor false.")
    return value


def _parse_limits(table: dict[str, Any], max_slowdown: str | None, limits: list[str]) -> GateLimits:
    from dataclasses import fields

    from segdeploy.core.limits import GateLimits

    known = [each.name for each in fields(GateLimits)]
    given: dict[str, Any] = {}
    for text in limits:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"'{text}' is no limit.", hint=f"Write NAME=SHARE; names: {', '.join(known)}."
            )
        given[name] = value
    if max_slowdown is not None:
        given["latency"] = max_slowdown
    return GateLimits.from_table({**table, **given})


def _write(result: GateResult, junit: Path | None, summary: Path | None) -> bool:
    """Write what CI systems read; return whether all could be written."""
    from segdeploy.workflows.junit import gate_cases
    from segdeploy.workflows.summary import render_gate

    return write_ci_files(gate_cases(result), render_gate(result), junit, summary)


def _render(result: GateResult) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "baseline", "candidate", "ratio", "interval", "limit", "verdict"):
        table.add_column(heading, justify="left" if heading in {"metric", "verdict"} else "right")
    for metric in result.metrics:
        interval = "-" if metric.ratio_ci is None else "{:.3f} to {:.3f}".format(*metric.ratio_ci)
        table.add_row(
            metric.name,
            _value(metric.baseline, metric.unit), _value(metric.candidate, metric.unit),
            "-" if metric.ratio is None else f"{metric.ratio:.3f}",
            interval, f"{metric.limit:g}", str(metric.verdict),
        )  # fmt: skip
    if result.metrics:
        console.print(table)
    launches = len(result.samples.get("launches", ()))
    environment = result.environment
    console.print(
        f"[bold]{result.verdict}[/]: {escape(result.reason)}\n"
        f"{launches} launches a side, {environment['threads']} threads, {environment['device']}, "
        f"{escape(str(environment['cpu']))}, {result.seconds:.0f} s"
    )
    for line in environment.get("different_machine") or ():
        say(f"note: another machine: {line}")
    for warning in environment.get("warnings") or ():
        say(f"note: {warning}")


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}".strip()
