"""The later stages of `run`: evaluate, bench, gate and report, each reused by what it depends on.

What a bench or a gate found holds for one machine: its fingerprint is part of the key. The
artifacts of a model and size are measured in one interleaved run, so that their ratios mean
something.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from segdeploy.bench import measure_interleaved
from segdeploy.core.errors import ArtifactError, SegDeployError
from segdeploy.core.folder import load_folder
from segdeploy.core.gate import GateResult
from segdeploy.core.results import BenchResult, read_result
from segdeploy.data import VAL
from segdeploy.workflows.gate import gate
from segdeploy.workflows.gate_stored import is_stored
from segdeploy.workflows.history import append_history, history_entry
from segdeploy.workflows.run_baseline import NO_COUNTERPART, find_baseline
from segdeploy.workflows.run_export import Work, in_words_of_the_file
from segdeploy.workflows.run_keys import file_key, machine_key, results_key, stage_key
from segdeploy.workflows.run_memory import BENCH, GATE
from segdeploy.workflows.run_result import StageOutcome, Status
from segdeploy.workflows.run_tables import ModelTable

EVAL, PAGE = "eval.json", "report.html"


def evaluate_artifact(work: Work, model: ModelTable, path: Path) -> None:
    """Score one artifact on the model's data."""
    from segdeploy.evaluate import evaluate

    data, table = work.config.data_of(model) or "", work.config.evaluate
    empty = _empty(model, path, "evaluate")
    seen, device = work.data_key(data, table.split), work.config.run.device
    key = stage_key("evaluate", _digest(path), seen, str(table), device)

    def score() -> StageOutcome:
        start = time.perf_counter()
        try:
            result = evaluate(
                path, data=data, split=table.split, limit=table.limit,
                device=work.config.run.device,
                progress=lambda done, total: work.progress(f"evaluate {path.name}", done, total),
            )  # fmt: skip
        except SegDeployError as error:
            return _failed(work, empty, error, start)
        shown = "unknown" if result.mean_iou is None else f"{100 * result.mean_iou:.2f} %"
        return replace(
            empty, reason=f"mIoU {shown} on {result.data}", seconds=time.perf_counter() - start,
            values={"mean_iou": result.mean_iou},
        )  # fmt: skip

    work.memory.settle(empty.place, key, path / EVAL, score)


def by_input(paths: Sequence[Path]) -> list[list[Path]]:
    """Return the artifacts in groups of one input size: across sizes a ratio means nothing."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        shape = load_folder(path, check_files=False).manifest.inputs[0].shape
        groups.setdefault(str(shape), []).append(path)
    return list(groups.values())


def bench_model(work: Work, model: ModelTable, paths: Sequence[Path]) -> None:
    """Measure a model's artifacts side by side, unless nothing of it has changed."""
    table = work.config.bench
    digests = [_digest(path) for path in paths]
    key = stage_key("bench", digests, str(table), work.config.run.device, machine_key())
    known = [work.memory.find(_empty(model, p, "bench").place, key, p / BENCH) for p in paths]
    reused = [each for each in known if each is not None]
    if len(reused) == len(paths):
        for path, outcome in zip(paths, reused, strict=True):
            work.memory.keep(_noted_again(work, outcome, path))
        return
    for path, outcome in zip(paths, _measure(work, model, paths), strict=True):
        work.memory.keep_result(outcome, key, path / BENCH)


def _measure(work: Work, model: ModelTable, paths: Sequence[Path]) -> list[StageOutcome]:
    work.say(f"{model.label}: bench of {', '.join(path.name for path in paths)}")
    start = time.perf_counter()
    try:
        plan = work.config.bench.plan(work.config.run.device)
        found = measure_interleaved(
            paths, plan, progress=lambda done: work.progress(f"bench {model.label}", done, 1.0)
        )
    except SegDeployError as error:
        return [_failed(work, _empty(model, path, "bench"), error, start) for path in paths]
    results = {Path(result.path): result for result in found.results}
    lost = [path for path in paths if path not in results]
    unwritten = [path for path, result in results.items() if not _is_written(result)]
    errors = dict(zip([*lost, *unwritten], found.failures, strict=False))  # In this order.
    return [
        _failed(work, _empty(model, path, "bench"), errors[path], start)
        if path in errors
        else _benched(work, _empty(model, path, "bench"), results[path], start)
        for path in paths
    ]


def _is_written(result: BenchResult) -> bool:
    """Return whether the `bench.json` that stands there is this result's."""
    try:
        found = read_result(Path(result.path) / BENCH) or {}
    except ArtifactError:
        return False
    same: bool = found.get("environment", {}).get("bench_run") == result.environment["bench_run"]
    return same


def _benched(work: Work, empty: StageOutcome, result: BenchResult, start: float) -> StageOutcome:
    """Return the outcome of a bench; one that its history does not hold is done again."""
    try:
        if work.config.history.file is not None:
            entry = history_entry(result, empty.model)
            append_history(Path(work.config.history.file), [entry])
    except SegDeployError as error:
        return _failed(work, empty, error, start)
    p50 = result.latency_ms["p50"]
    shown = "unknown" if p50 is None else f"{p50:.2f} ms"
    return replace(
        empty, reason=f"p50 {shown}", seconds=time.perf_counter() - start,
        values={"p50_ms": p50, "peak_memory_mib": result.peak_memory_mib},
    )  # fmt: skip


def _noted_again(work: Work, outcome: StageOutcome, path: Path) -> StageOutcome:
    """Return the outcome of a known bench, once a history that lacks it has got its line.

    A history may be younger than the run: another branch's, or a lost one.
    """
    if work.config.history.file is None:
        return outcome
    try:
        result = BenchResult.from_dict({**(read_result(path / BENCH) or {}), "path": str(path)})
        entry = history_entry(result, outcome.model)
        if entry.bench is not None:  # One without a name would be added by each run.
            append_history(Path(work.config.history.file), [entry])
    except SegDeployError as error:
        return _failed(work, outcome, error, time.perf_counter())
    return outcome


def gate_artifact(work: Work, model: ModelTable, path: Path) -> None:
    """Compare an artifact with the one of the same model and name in the baseline."""
    empty = _empty(model, path, "gate")
    root, is_only_model = Path(work.config.gate.baseline or ""), len(work.config.model) == 1
    try:
        place = find_baseline(root, model.label, path, is_only_model=is_only_model)
        if place is not None and not is_stored(place):
            load_folder(place)  # A damaged one decides nothing.
    except SegDeployError as error:
        work.memory.keep(_failed(work, empty, error, time.perf_counter()))
        return
    if place is None:
        reason = f"The baseline has no {model.label}/{path.name}: nothing to compare with."
        work.memory.keep(replace(empty, status=Status.SKIPPED, kind=NO_COUNTERPART, reason=reason))
        return
    if _has_failed(work, model, path):
        reason = "It failed verify; its speed means nothing."
        work.memory.keep(replace(empty, status=Status.SKIPPED, reason=reason))
        return
    work.memory.settle(
        empty.place,
        _gate_key(work, model, place, path),
        path / GATE,
        lambda: _compare(work, empty, place, path, work.config.data_of(model)),
    )


def _gate_key(work: Work, model: ModelTable, baseline: Path, path: Path) -> str:
    sides = [
        (file_key(side), "") if is_stored(side) else (_digest(side), file_key(side / EVAL))
        for side in (baseline, path)
    ]
    settings = str(work.config.gate), str(work.config.bench), work.config.run.device
    seen = work.data_key(work.config.data_of(model), VAL)
    return stage_key("gate", sides, settings, seen, machine_key())


def _has_failed(work: Work, model: ModelTable, path: Path) -> bool:
    place = _empty(model, path, "verify").place
    return any(o.place == place and o.status is Status.FAILED for o in work.memory.outcomes)


def _compare(
    work: Work, empty: StageOutcome, baseline: Path, path: Path, data: str | None
) -> StageOutcome:
    config = work.config
    work.say(f"{empty.model}/{empty.artifact}: gate against {baseline}")
    start = time.perf_counter()
    try:
        plan = config.gate.plan(config.bench, config.run.device, data)
        result: GateResult = gate(
            baseline, path, plan=plan, limits=config.gate.limits,
            progress=lambda done: work.progress(f"gate {empty.artifact}", done, 1.0), save=True,
        )  # fmt: skip
    except SegDeployError as error:
        return _failed(work, empty, error, start)
    if not result.environment.get("is_saved", True):
        with suppress(OSError):
            (path / GATE).unlink()  # That of an earlier gate would be taken for this one's.
    seconds = time.perf_counter() - start
    return StageOutcome.of_gate(empty.model, empty.artifact, result, seconds)


def report_model(work: Work, model: ModelTable) -> None:
    """Write the report of a model's run folder, unless nothing in it has changed."""
    from segdeploy.report import report

    empty = StageOutcome(model=model.label, artifact="", stage="report", status=Status.PASSED)
    keys = [(o.place, o.key) for o in work.memory.outcomes if o.model == model.label]
    key = stage_key("report", keys, results_key(work.folder(model)))

    def write() -> StageOutcome:
        start = time.perf_counter()
        try:
            written = report(work.folder(model))
        except SegDeployError as error:
            return _failed(work, empty, error, start)
        return replace(empty, reason=str(written), seconds=time.perf_counter() - start)

    work.memory.settle(empty.place, key, work.folder(model) / PAGE, write)


def _empty(model: ModelTable, path: Path, stage: str) -> StageOutcome:
    return StageOutcome(model=model.label, artifact=path.name, stage=stage, status=Status.PASSED)


def _failed(work: Work, empty: StageOutcome, error: SegDeployError, start: float) -> StageOutcome:
    work.say(f"{empty.place}: {error.message}")
    seconds, told = time.perf_counter() - start, in_words_of_the_file(error)
    return StageOutcome.of_error(empty.model, empty.artifact, empty.stage, told, seconds)


def _digest(path: Path) -> str:
    return load_folder(path, check_files=False).manifest.digest
