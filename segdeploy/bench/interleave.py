"""Run several artifacts in turn, so that the machine's drift hits all of them alike.

Each artifact lives in its own process; all are opened and warmed up first, then they run in blocks
in ABBA order (A B C, C B A, A B C, ...): a slow change of frequency or load cancels out of the
ratios. Before each block one call is thrown away, since the others have emptied the caches. Only
one worker runs at a time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import Any

import numpy as np

from segdeploy.bench.child import BenchChild
from segdeploy.bench.inputs import choose_sizes, make_batch
from segdeploy.bench.plan import NUM_BLOCKS, SECONDS, WARM_UP_S, BenchPlan
from segdeploy.core.contract import OutputKind
from segdeploy.core.errors import ArtifactError, ConfigError, SegDeployError
from segdeploy.core.files import write_errors, write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.manifest import Manifest
from segdeploy.core.results import BenchResult
from segdeploy.measure import describe_environment, usable_cores
from segdeploy.measure.noise import (
    busy_seconds,
    load_warnings,
    others_warnings,
    robust_variation,
    sample_warnings,
)

RESULT = "bench.json"


@dataclass
class _Entry:
    """One artifact on its way through the run."""

    folder: ModelFolder
    size: tuple[int, int]
    child: BenchChild | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    blocks_ms: list[list[float]] = field(default_factory=list)
    error: SegDeployError | None = None


_Step = Callable[[_Entry, BenchPlan], None]


@dataclass(frozen=True)
class BenchOutcome:
    """What was measured, in the order asked, and what could not be."""

    results: list[BenchResult]
    failures: list[SegDeployError]


Progress = Callable[[float], None]


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

    Each folder gets its `bench.json`, unless `save` is off.

    Example:
        `bench([Path("runs/a/onnx-fp32")], size=(360, 480))[0].latency_ms["p50"]`

    Args:
        paths: Checkpoint or artifact folders.
        size: (H, W) of the input; default: a static artifact's, else the model's design size.
        batch_size: Images per call.
        threads: Of each runtime; default: the cores that this process may use.
        device: `cpu` or `cuda`.
        seconds: Time of sampling per artifact; at least 10 calls are made in any case.
        warmup_s: Time of warm-up per artifact.
        save: Whether to write `bench.json`.

    Raises:
        ArtifactError: If a folder is missing or damaged, or a runtime crashed or hung; the others
            have been measured and saved then.
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
    sizes = choose_sizes(folders, plan.size, plan.batch_size)
    entries = [_Entry(f, s) for f, s in zip(folders, sizes, strict=True)]
    with _locked(folders) if save else ExitStack():
        environment = describe_environment()
        start, busy, own = monotonic(), busy_seconds(), process_time()
        _run(entries, plan, progress)
        environment["others_cores"] = _others_cores(entries, start, busy, own)
        outcome = _collect(entries, plan, environment)
        if save:
            for result in outcome.results:
                write_json(Path(result.path) / RESULT, result.to_dict())
    return outcome


@contextmanager
def _locked(folders: Sequence[ModelFolder]) -> Iterator[None]:
    """Hold the run folder of every artifact, and find out early what cannot be written."""
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


def _run(entries: Sequence[_Entry], plan: BenchPlan, progress: Progress) -> None:
    """Open and warm up all, sample in ABBA blocks, finish; a failed one is left out from there."""
    order: list[tuple[_Step, _Entry]] = [(_open, entry) for entry in entries]
    for block in range(NUM_BLOCKS):
        in_turn = entries if block % 2 == 0 else reversed(entries)
        order += [(_sample, entry) for entry in in_turn]
    order += [(_finish, entry) for entry in entries]
    try:
        for index, (step, entry) in enumerate(order, start=1):
            _attempt(step, entry, plan)
            progress(index / len(order))
    finally:
        for entry in entries:
            if entry.child is not None:
                entry.child.stop()


def _attempt(step: _Step, entry: _Entry, plan: BenchPlan) -> None:
    """Take a step unless the entry has failed; keep the error and end the process if it fails."""
    if entry.error is not None:
        return
    try:
        step(entry, plan)
    except SegDeployError as error:
        entry.error = error
        if entry.child is not None:
            entry.child.stop()


def _open(entry: _Entry, plan: BenchPlan) -> None:
    threads = plan.threads or usable_cores()
    limit_s = plan.limit_s + max(plan.seconds, plan.warmup_s)
    entry.child = BenchChild(entry.folder, threads, limit_s)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "batch.npy"
        with write_errors(file):
            np.save(file, make_batch(
                entry.folder.manifest, entry.size, plan.batch_size, as_images=plan.end_to_end
            ))  # fmt: skip
        path = str(entry.folder.path.resolve())
        entry.opened = entry.child.ask(
            "open", path=path, device=plan.device, threads=threads, batch=str(file),
            end_to_end=plan.end_to_end,
        )  # fmt: skip
    entry.child.ask("sample", seconds=plan.warmup_s)


def _sample(entry: _Entry, plan: BenchPlan) -> None:
    if entry.child is not None:
        answer = entry.child.ask("sample", seconds=plan.seconds / NUM_BLOCKS)
        entry.blocks_ms.append(answer["samples_ms"])


def _finish(entry: _Entry, _plan: BenchPlan) -> None:
    if entry.child is not None:
        entry.finished = entry.child.ask("finish")


def _others_cores(
    entries: Sequence[_Entry], start: float, busy: float | None, own: float
) -> float | None:
    """Return how many cores processes other than ours kept busy since `start`, if it is known."""
    now = busy_seconds()
    if busy is None or now is None or any(entry.error for entry in entries):
        return None
    ours = process_time() - own + sum(float(entry.finished["cpu_s"]) for entry in entries)
    return max(0.0, now - busy - ours) / max(0.001, monotonic() - start)


def _collect(
    entries: Sequence[_Entry], plan: BenchPlan, environment: dict[str, Any]
) -> BenchOutcome:
    run_id = uuid.uuid4().hex[:12]
    before = load_warnings(environment["load_average"], environment["governor"])
    before += others_warnings(environment["others_cores"])
    if len({entry.size for entry in entries}) > 1:
        before.append("The artifacts have different input sizes: their ratios say little.")
    shared = {
        **environment,
        "bench_run": run_id,
        "beside": [str(entry.folder.path) for entry in entries],
        "device": plan.device,
        "threads": plan.threads or usable_cores(),
        "seconds": plan.seconds,
        "warmup_s": plan.warmup_s,
    }
    done = [entry for entry in entries if entry.error is None]
    return BenchOutcome(
        [_result(entry, plan, shared, before) for entry in done],
        [entry.error for entry in entries if entry.error is not None],
    )


def describe_call(manifest: Manifest, plan: BenchPlan) -> str:
    """Return what a measured call does: low-resolution logits are brought to labels in any case."""
    if plan.end_to_end:
        return "image to label map"
    given = manifest.io.output
    is_low = given is OutputKind.LOW_LOGITS
    return f"{manifest.io.input} to {f'labels by way of {given}' if is_low else given}"


def _result(
    entry: _Entry, plan: BenchPlan, shared: dict[str, Any], warnings: list[str]
) -> BenchResult:
    samples = [sample for block in entry.blocks_ms for sample in block]
    return BenchResult(
        target=entry.folder.name,
        path=str(entry.folder.path),
        samples_ms=samples,
        batch_size=plan.batch_size,
        input_shape=tuple(entry.opened["input_shape"]),
        peak_memory_mib=entry.finished["peak_memory_mib"],
        environment={
            **shared,
            "artifact": entry.folder.manifest.digest,
            "block_sizes": [len(block) for block in entry.blocks_ms],
            "variation": robust_variation(samples),
            "num_preemptions": entry.finished["num_preemptions"],
            "runtime": entry.opened["runtime"],
            "measured": describe_call(entry.folder.manifest, plan),
            "warnings": [*warnings, *sample_warnings(samples)],
        },
    )
