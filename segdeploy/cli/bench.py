"""`segdeploy bench`: latency, throughput and memory, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.parsing import parse_numbers, parse_size
from segdeploy.core.errors import SegDeployError

if TYPE_CHECKING:
    from segdeploy.bench import BenchOutcome, BenchPlan


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Checkpoint or artifact folders.")],
    *,
    size: Annotated[str | None, typer.Option(help="HxW; default: the model's own.")] = None,
    batch_size: Annotated[
        str, typer.Option(help="Images per call; several (1,4,8) add their throughput.")
    ] = "1",
    streams: Annotated[int, typer.Option(help="Calls at once, for throughput.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Per runtime; default: all cores.")] = None,
    affinity: Annotated[str | None, typer.Option(help="Cores to run on, e.g. 0,1.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Sampling time per artifact.")] = 3.0,
    warmup: Annotated[
        float, typer.Option(help="Longest warm-up, seconds; ends when latency is steady.")
    ] = 5.0,
    launches: Annotated[int, typer.Option(help="Fresh processes per artifact.")] = 1,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="From a decoded image to its label map.")
    ] = False,
    sustained: Annotated[
        str | None, typer.Option(help="Then run each alone that long, e.g. 10m.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time of each layer instead; profile.svg.")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="No worker processes: for debugging.")
    ] = False,
    save: Annotated[bool, typer.Option(help="Write bench.json into each folder.")] = True,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Measure artifacts side by side; a checkpoint runs as eager PyTorch."""
    from segdeploy.bench import BenchPlan
    from segdeploy.core.limits import parse_seconds

    sizes = parse_numbers(batch_size)
    plan = BenchPlan(
        parse_size(size),
        sizes[0],
        threads,
        device,
        seconds,
        warmup,
        end_to_end=end_to_end,
        launches=launches,
        batch_sizes=sizes if len(sizes) > 1 else (),
        streams=streams,
        affinity=None if affinity is None else parse_numbers(affinity),
        sustained_s=0.0 if sustained is None else parse_seconds(sustained, "sustained"),
        in_process=in_process,
    )
    (_profile if profile else _measure)(artifacts, plan, save=save, as_json=as_json)


def _measure(artifacts: list[Path], plan: BenchPlan, *, save: bool, as_json: bool) -> None:
    from segdeploy.bench import measure_interleaved
    from segdeploy.cli.bench_tables import render_results
    from segdeploy.frameworks.progress import progress_bars

    with progress_bars() as advance:
        outcome = measure_interleaved(
            artifacts, plan, save=save, progress=lambda done: advance("bench", done, 1.0)
        )
    if outcome.results:
        documents = [result.to_dict() for result in outcome.results]
        emit(documents, as_json, lambda: render_results(outcome.results))
        for note, names in _notes(outcome).items():
            say(f"note: {', '.join(names)}: {note}")
    _report(outcome.failures)


def _profile(artifacts: list[Path], plan: BenchPlan, *, save: bool, as_json: bool) -> None:
    from segdeploy.bench.profile import check_profile_plan, profile_artifact
    from segdeploy.cli.bench_tables import render_profiles

    check_profile_plan(plan)
    made, failures = [], []
    for path in artifacts:
        try:
            made.append(profile_artifact(path, plan, save=save))
        except SegDeployError as error:
            failures.append(error)
    if made:
        emit([each.to_dict() for each in made], as_json, lambda: render_profiles(made))
    for each in made if save else ():
        say(f"wrote {Path(each.path) / 'profile.svg'}")
    _report(failures)


def _report(failures: Sequence[SegDeployError]) -> None:
    """Say all errors; the last one decides the exit code."""
    for error in failures[:-1]:
        say(f"error: {error}")
    if failures:
        raise failures[-1]


def _notes(outcome: BenchOutcome) -> dict[str, list[str]]:
    """Return each warning once, with the artifacts it concerns."""
    notes: dict[str, list[str]] = {}
    for result in outcome.results:
        for warning in result.environment["warnings"]:
            notes.setdefault(warning, []).append(Path(result.path).name)
    return notes
