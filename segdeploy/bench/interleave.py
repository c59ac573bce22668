"""Run several artifacts in turn, so that the machine's drift hits all of them alike.

Each artifact lives in its own process; all are opened and warmed up first, then they run in blocks
in ABBA order (`schedule.py`). Before each block one call is thrown away, since the others have
emptied the caches. Only one worker runs at a time; the others are stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns, process_time

from segdeploy.bench.collect import BenchOutcome, collect, others_cores
from segdeploy.bench.entry import Entry
from segdeploy.bench.inputs import choose_sizes
from segdeploy.bench.plan import SECONDS, WARM_UP_S, BenchPlan
from segdeploy.bench.schedule import Progress, run_all
from segdeploy.bench.sustained_plot import sustained_svg
from segdeploy.core.errors import ArtifactError, ConfigError, SegDeployError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.results import BenchResult
from segdeploy.measure import describe_environment
from segdeploy.measure.machine_state import read_state, state_change

RESULT, PICTURE = "bench.json", "sustained.svg"

__all__ = ["RESULT", "BenchOutcome", "bench", "measure_interleaved"]


def bench(
    paths: Sequence[Path],
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    seconds: float = SECONDS,
    warmup_s: float = WARM_UP_S,
    save: bool = True,
) -> list[BenchResult]:
    """Measure artifacts (a checkpoint runs as eager PyTorch) and return one result each, in order.

    Each folder gets its `bench.json`, unless `save` is off. `measure_interleaved` takes a
    `BenchPlan`, which has more settings.

    Example:
        `bench([Path("runs/a/onnx-fp32")], size=(360, 480))[0].latency_ms["p50"]`

    Args:
        paths: Checkpoint or artifact folders.
        size: (H, W) of the input; default: a static artifact's, else the model's design size.
        batch_size: Images per call.
        threads: Of each runtime; default: the cores that this process may use.
        device: `cpu` or `cuda`.
        seconds: Time of sampling per artifact; at least 10 calls are made in any case.
        warmup_s: Longest time of warm-up per artifact; it ends when latency is steady.
        save: Whether to write `bench.json`.

    Raises:
        ArtifactError: If a folder is missing or damaged, a runtime crashed or hung, or a result
            cannot be written; the others have been measured and saved then.
        BackendUnavailableError: If a runtime or the device is missing here.
        ConfigError: If a setting is out of range, or does not fit a static artifact.
    """
    plan = BenchPlan(size, batch_size, threads, device, seconds, warmup_s)
    outcome = measure_interleaved(paths, plan, save=save)
    if outcome.failures:
        raise outcome.failures[0]
    return outcome.results


def measure_interleaved(
    paths: Sequence[Path],
    plan: BenchPlan,
    *,
    save: bool = True,
    progress: Progress = lambda _: None,
) -> BenchOutcome:
    """As `bench`, but failures of single artifacts are returned beside the results.

    Args:
        paths: Checkpoint or artifact folders.
        plan: How to measure.
        save: Whether to write `bench.json` into each folder.
        progress: Is told the share that is done, in [0, 1].
    """
    if not paths:
        raise ConfigError("There is nothing to benchmark.", hint="Give one folder or more.")
    folders: list[ModelFolder] = [load_folder(path) for path in paths]
    for batch_size in plan.throughput_sizes:
        choose_sizes(folders, plan.size, batch_size)
    sizes = choose_sizes(folders, plan.size, plan.batch_size)
    entries = [Entry(f, s) for f, s in zip(folders, sizes, strict=True)]
    with _locked(folders) if save else ExitStack():
        environment = describe_environment()
        start_ns, own, before = perf_counter_ns(), process_time(), read_state()
        run_all(entries, plan, progress)
        change = state_change(before, read_state())
        environment["others_cores"] = others_cores(
            entries, change, process_time() - own, in_process=plan.in_process
        )
        outcome = collect(entries, plan, {**environment, "during": change}, start_ns)
        if save:
            outcome.failures.extend(filter(None, map(_save, outcome.results)))
    return outcome


def _save(result: BenchResult) -> SegDeployError | None:
    """Write a result; return why it cannot be written, since it was measured all the same."""
    try:
        _write(result)
    except ArtifactError as error:
        return error
    return None


def _write(result: BenchResult) -> None:
    write_json(Path(result.path) / RESULT, result.to_dict())
    if result.sustained:
        picture = sustained_svg(result.target, result.sustained["rows"])
        write_bytes(Path(result.path) / PICTURE, picture.encode())


@contextmanager
def _locked(folders: Sequence[ModelFolder]) -> Iterator[None]:
    """Hold the run folder of every artifact, and find out early what cannot be written."""
    places = [folder.path.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise ConfigError(
                f"{place} was given {places.count(place)} times, and has one {RESULT}.",
                hint="Name it once; --launches repeats it, --no-save measures it as it was given.",
            )
    with ExitStack() as stack:
        for run in sorted({folder.path.resolve().parent for folder in folders}):
            stack.enter_context(run_lock(run))
        for folder in folders:
            if not os.access(folder.path, os.W_OK):
                raise ArtifactError(
                    f"Cannot write {RESULT} into {folder.path}: no permission.",
                    hint="Give --no-save to measure without writing.",
                )
        yield
