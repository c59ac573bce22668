"""The later stages of `run`: evaluate, bench, gate and report, each reused by what it depends on.

What a bench or a gate found holds for one machine: its fingerprint is part of the key. The
artifacts of a model and size are measured in one interleaved run, so that their ratios mean
something.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import segdeploy
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import digest_of
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.gate import GateResult
from segdeploy.core.results import BenchResult, read_result
from segdeploy.core.sizes import parse_size
from segdeploy.measure import describe_environment
from segdeploy.measure.fingerprint import fingerprint
from segdeploy.workflows.gate import GatePlan, gate
from segdeploy.workflows.history import append_history, history_entry
from segdeploy.workflows.run_baseline import NO_COUNTERPART, find_baseline
from segdeploy.workflows.run_export import Work
from segdeploy.workflows.run_memory import GATE
from segdeploy.workflows.run_result import StageOutcome, Status
from segdeploy.workflows.run_tables import ModelTable

EVAL, BENCH, PAGE = "eval.json", "bench.json", "report.html"


@cache
def machine_key() -> str:
    """Return the digest of what makes times of this machine comparable."""
    return digest_of(fingerprint(describe_environment()))


def evaluate_artifact(work: Work, model: ModelTable, path: Path) -> None:
    """Score one artifact on the model's data."""
    from segdeploy.evaluate import evaluate

    data, table = work.config.data_of(model) or "", work.config.evaluate
    empty = _empty(model, path, "evaluate")
    key = digest_of(["evaluate", segdeploy.__version__, _digest(path), data, str(table)])

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
    key = digest_of(["bench", segdeploy.__version__, digests, str(table), machine_key()])
    known = [work.memory.find(_empty(model, p, "bench").place, key, p / BENCH) for p in paths]
    reused = [each for each in known if each is not None]
    if len(reused) == len(paths):
        for outcome in reused:
            work.memory.keep(outcome)
        return
    for outcome in _measure(work, model, paths):
        work.memory.keep(replace(outcome, key=key))


def _measure(work: Work, model: ModelTable, paths: Sequence[Path]) -> list[StageOutcome]:
    table = work.config.bench
    work.say(f"{model.label}: bench of {', '.join(path.name for path in paths)}")
    start = time.perf_counter()
    try:
        plan = BenchPlan(
            size=parse_size(table.size), batch_size=table.batch_size, threads=table.threads,
            device=work.config.run.device, seconds=table.seconds, warmup_s=table.warmup,
            end_to_end=table.end_to_end, launches=table.launches,
        )  # fmt: skip
        found = measure_interleaved(
            paths, plan, progress=lambda done: work.progress(f"bench {model.label}", done, 1.0)
        )
    except SegDeployError as error:
        return [_failed(work, _empty(model, path, "bench"), error, start) for path in paths]
    results = {Path(result.path): result for result in found.results}
    errors = iter(found.failures)  # In the order of those that have no result.
    outcomes = [
        _benched(_empty(model, path, "bench"), results[path], start)
        if path in results
        else _failed(work, _empty(model, path, "bench"), next(errors), start)
        for path in paths
    ]
    _remember(work, model, found.results)
    return outcomes


def _benched(empty: StageOutcome, result: BenchResult, start: float) -> StageOutcome:
    p50 = result.latency_ms["p50"]
    shown = "unknown" if p50 is None else f"{p50:.2f} ms"
    return replace(
        empty, reason=f"p50 {shown}", seconds=time.perf_counter() - start,
        values={"p50_ms": p50, "peak_memory_mib": result.peak_memory_mib},
    )  # fmt: skip


def _remember(work: Work, model: ModelTable, results: Sequence[BenchResult]) -> None:
    if work.config.history.file is not None:
        entries = [history_entry(result, model.label) for result in results]
        append_history(Path(work.config.history.file), entries)


def gate_artifact(work: Work, model: ModelTable, path: Path) -> None:
    """Compare an artifact with the one of the same name in the baseline."""
    empty = _empty(model, path, "gate")
    try:
        baseline = find_baseline(Path(work.config.gate.baseline or ""), model.label, path)
    except SegDeployError as error:
        work.memory.keep(_failed(work, empty, error, time.perf_counter()))
        return
    if baseline is None:
        reason = f"The baseline has no {model.label}/{path.name}: nothing to compare with."
        work.memory.keep(replace(empty, status=Status.SKIPPED, kind=NO_COUNTERPART, reason=reason))
        return
    if _has_failed(work, model, path):
        reason = "It failed verify; its speed means nothing."
        work.memory.keep(replace(empty, status=Status.SKIPPED, reason=reason))
        return
    work.memory.settle(
        empty.place,
        _gate_key(work, baseline, path),
        path / GATE,
        lambda: _compare(work, empty, baseline, path, work.config.data_of(model)),
    )


def _gate_key(work: Work, baseline: Path, path: Path) -> str:
    try:
        sides: list[Any] = [
            [_digest(side), (read_result(side / EVAL) or {}).get("mean_iou")]
            for side in (baseline, path)
        ]
    except SegDeployError:
        return ""  # The gate itself says what is wrong with it.
    settings = str(work.config.gate), str(work.config.bench), work.config.run.device
    return digest_of(["gate", segdeploy.__version__, sides, settings, machine_key()])


def _has_failed(work: Work, model: ModelTable, path: Path) -> bool:
    place = _empty(model, path, "verify").place
    return any(o.place == place and o.status is Status.FAILED for o in work.memory.outcomes)


def _compare(
    work: Work, empty: StageOutcome, baseline: Path, path: Path, data: str | None
) -> StageOutcome:
    config = work.config
    work.say(f"{empty.model}/{empty.artifact}: gate against {baseline}")
    start = time.perf_counter()
    plan = GatePlan(
        size=parse_size(config.bench.size), batch_size=config.bench.batch_size,
        threads=config.bench.threads, device=config.run.device, budget_s=config.gate.budget_s,
        streams=config.gate.streams, data=data,
    )  # fmt: skip
    try:
        result: GateResult = gate(
            baseline, path, plan=plan, limits=config.gate.limits,
            progress=lambda done: work.progress(f"gate {empty.artifact}", done, 1.0), save=True,
        )  # fmt: skip
    except SegDeployError as error:
        return _failed(work, empty, error, start)
    seconds = time.perf_counter() - start
    return StageOutcome.of_gate(empty.model, empty.artifact, result, seconds)


def report_model(work: Work, model: ModelTable) -> None:
    """Write the report of a model's run folder, unless nothing in it has changed."""
    from segdeploy.report import report

    empty = StageOutcome(model=model.label, artifact="", stage="report", status=Status.PASSED)
    outcomes = [o for o in work.memory.outcomes if o.model == model.label]
    is_old = all(o.reused or o.status is Status.SKIPPED for o in outcomes)
    key = "report"
    page = work.folder(model) / PAGE

    def write() -> StageOutcome:
        start = time.perf_counter()
        try:
            written = report(work.folder(model))
        except SegDeployError as error:
            return _failed(work, empty, error, start)
        return replace(empty, reason=str(written), seconds=time.perf_counter() - start)

    if is_old:
        work.memory.settle(empty.place, key, page, write)
    else:
        work.memory.keep(replace(write(), key=key))


def _empty(model: ModelTable, path: Path, stage: str) -> StageOutcome:
    return StageOutcome(model=model.label, artifact=path.name, stage=stage, status=Status.PASSED)


def _failed(work: Work, empty: StageOutcome, error: SegDeployError, start: float) -> StageOutcome:
    work.say(f"{empty.place}: {error.message}")
    seconds = time.perf_counter() - start
    return StageOutcome.of_error(empty.model, empty.artifact, empty.stage, error, seconds)


def _digest(path: Path) -> str:
    folder: ModelFolder = load_folder(path, check_files=False)
    return folder.manifest.digest
