"""`segdeploy bench`: latency, throughput and memory, interleaved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.parsing import parse_size

if TYPE_CHECKING:
    from segdeploy.bench import BenchOutcome


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Checkpoint or artifact folders.")],
    size: Annotated[str | None, typer.Option(help="HxW; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per call.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Per runtime; default: all cores.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Sampling time per artifact.")] = 3.0,
    warmup: Annotated[float, typer.Option(help="Warm-up time per artifact, seconds.")] = 1.0,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="From a decoded image to its label map.")
    ] = False,
    save: Annotated[bool, typer.Option(help="Write bench.json into each folder.")] = True,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Measure artifacts side by side; a checkpoint runs as eager PyTorch."""
    from segdeploy.bench import BenchPlan, measure_interleaved
    from segdeploy.frameworks.progress import progress_bars

    plan = BenchPlan(
        parse_size(size), batch_size, threads, device, seconds, warmup, end_to_end=end_to_end
    )
    with progress_bars() as advance:
        outcome = measure_interleaved(
            artifacts, plan, save=save, progress=lambda done: advance("bench", done, 1.0)
        )
    if outcome.results:
        emit([result.to_dict() for result in outcome.results], as_json, lambda: _render(outcome))
    for error in outcome.failures[:-1]:
        say(f"error: {error}")
    if outcome.failures:
        raise outcome.failures[-1]


def _render(outcome: BenchOutcome) -> None:
    """Print the table; ratios are to the first artifact that was measured."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("artifact", overflow="fold")
    for heading in ("p50 ms", "p90 ms", "p99 ms", "min ms", "ratio", "img/s", "peak MiB"):
        table.add_column(heading, justify="right")
    first = outcome.results[0].latency_ms["p50"]
    for result in outcome.results:
        latency = result.latency_ms
        ratio = latency["p50"] / first if latency["p50"] and first else None
        table.add_row(
            Path(result.path).name,
            *(_number(latency[name], 2) for name in ("p50", "p90", "p99", "min")),
            _number(ratio, 3), _number(result.throughput_img_s, 1),
            _number(result.peak_memory_mib, 0),
        )  # fmt: skip
    Console().print(table)
    shape = "x".join(map(str, outcome.results[0].input_shape))
    environment = outcome.results[0].environment
    print(  # noqa: T201
        f"input {shape}, {environment['threads']} threads, {environment['device']}, "
        f"{environment['cpu']}"
    )
    for note, names in _notes(outcome).items():
        say(f"note: {', '.join(names)}: {note}")


def _notes(outcome: BenchOutcome) -> dict[str, list[str]]:
    """Return each warning once, with the artifacts it concerns."""
    notes: dict[str, list[str]] = {}
    for result in outcome.results:
        for warning in result.environment["warnings"]:
            notes.setdefault(warning, []).append(Path(result.path).name)
    return notes


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
