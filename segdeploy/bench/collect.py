"""From what the workers said to results, one for each artifact."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segdeploy.bench.call import describe_call
from segdeploy.bench.entry import Entry, Launch
from segdeploy.bench.gpu_time import event_warnings, median_event_ms
from segdeploy.bench.plan import BenchPlan
from segdeploy.bench.sustained import compare_ends
from segdeploy.core.errors import SegDeployError
from segdeploy.core.results import BenchResult
from segdeploy.measure.machine_state import state_warnings
from segdeploy.measure.noise import (
    load_warnings,
    others_warnings,
    robust_variation,
    sample_warnings,
)
from segdeploy.measure.steady import warm_up_warnings

_MOST_OPEN = 0.02


@dataclass(frozen=True)
class BenchOutcome:
    """What was measured, in the order asked, and what could not be."""

    results: list[BenchResult]
    failures: list[SegDeployError]


def others_cores(
    entries: Sequence[Entry], change: Mapping[str, Any], own_s: float, *, in_process: bool = False
) -> float | None:
    """Return how many cores processes other than ours kept busy during the run, if it is known.

    Args:
        entries: What was run.
        change: Of the machine's state (`measure.machine_state`).
        own_s: CPU time of this process.
        in_process: Whether there were no others of ours.
    """
    launches = [launch for entry in entries for launch in entry.launches]
    is_known = all("cpu_s" in launch.finished for launch in launches) and not any(
        e.error for e in entries
    )
    if change["busy_s"] is None or not is_known:
        return None
    workers_s = sum(float(launch.finished["cpu_s"]) for launch in launches)
    ours = own_s if in_process else own_s + workers_s
    return max(0.0, float(change["busy_s"]) - ours) / float(change["seconds"])


def collect(
    entries: Sequence[Entry], plan: BenchPlan, environment: Mapping[str, Any], start_ns: int
) -> BenchOutcome:
    """Return the outcome; `start_ns` is when the run began, on the clock of the samples."""
    warnings = load_warnings(environment["load_average"], environment["governor"])
    warnings += others_warnings(environment["others_cores"])
    warnings += state_warnings(environment["during"])
    if len({entry.size for entry in entries}) > 1:
        warnings.append("The artifacts have different input sizes: their ratios say little.")
    if plan.in_process:
        warnings.append("One process for all: memory is that of everything in it.")
    shared = {
        **environment,
        "affinity": environment["affinity"] if plan.affinity is None else sorted(plan.affinity),
        "bench_run": uuid.uuid4().hex[:12],
        "beside": [str(entry.folder.path) for entry in entries],
        "device": plan.device,
        "threads": plan.num_threads,
        "seconds": plan.seconds,
        "warmup_s": plan.warmup_s,
        "in_process": plan.in_process,
    }
    done = [entry for entry in entries if entry.error is None]
    return BenchOutcome(
        [_result(entry, plan, shared, warnings, start_ns) for entry in done],
        [entry.error for entry in entries if entry.error is not None],
    )


def _result(
    entry: Entry, plan: BenchPlan, shared: dict[str, Any], warnings: list[str], start_ns: int
) -> BenchResult:
    blocks = [block for launch in entry.launches for block in launch.blocks]
    samples = [ms for block in blocks for ms in block["samples_ms"]]
    events = [pair for block in blocks for pair in block["event_ms"]]
    memory = [launch.finished.get("peak_memory_mib") for launch in entry.launches]
    known = [mib for mib in memory if mib is not None]
    manifest = entry.folder.manifest
    opened = entry.launches[0].opened
    result = BenchResult(
        target=entry.folder.name,
        path=str(entry.folder.path),
        samples_ms=samples,
        starts_s=[(at - start_ns) / 1e9 for block in blocks for at in block["starts_ns"]],
        launches=[_num_samples(launch) for launch in entry.launches],
        batch_size=plan.batch_size,
        input_shape=tuple(opened["input_shape"]),
        peak_memory_mib=max(known) if known else None,
        launch_memory_mib=memory,
        cold_starts_ms=[launch.opened["cold_start_ms"] for launch in entry.launches],
        warm_ups=[launch.warm_up for launch in entry.launches],
        region_samples_ms=_join_books([block["regions_ms"] for block in blocks]),
        throughput=_throughput(entry),
        sustained=compare_ends(
            entry.sustained,
            entry.sustained_s,
            is_interrupted=entry.is_interrupted,
            num_throttled=entry.num_throttled,
        ),
        environment={
            **shared,
            "artifact": manifest.digest,
            "block_sizes": [len(block["samples_ms"]) for block in blocks],
            "variation": robust_variation(samples),
            "num_preemptions": sum(
                launch.finished.get("num_preemptions", 0) for launch in entry.launches
            ),
            "runtime": opened["runtime"],
            "measured": describe_call(manifest, end_to_end=plan.end_to_end),
            "gpu_event_ms": median_event_ms(events),
        },
    )
    own = [*sample_warnings(samples), *_own_warnings(result), *event_warnings(events)]
    result.environment["warnings"] = [*warnings, *own]
    return result


def _num_samples(launch: Launch) -> int:
    return sum(len(block["samples_ms"]) for block in launch.blocks)


def _join_books(books: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the regions of all blocks one after the other."""
    joined: dict[str, list[float]] = {}
    for book in books:
        for region, ms in book.items():
            joined.setdefault(region, []).extend(ms)
    return joined


def _throughput(entry: Entry) -> list[dict[str, Any]]:
    rows = []
    for (batch_size, streams), parts in entry.throughput.items():
        images = sum(part["images"] for part in parts)
        seconds = sum(part["seconds"] for part in parts)
        rows.append({
            "batch_size": batch_size, "streams": streams, "images": images, "seconds": seconds,
            "img_s": images / seconds if seconds else None,
        })  # fmt: skip
    return rows


def _own_warnings(result: BenchResult) -> list[str]:
    """Return what an artifact's own run says against it, each thing once."""
    found = warm_up_warnings(result.warm_ups)
    regions = result.regions_ms
    if regions and abs(regions["remainder"]) > _MOST_OPEN * regions["end_to_end"]:
        share = regions["remainder"] / regions["end_to_end"]
        found.append(f"The regions leave {share:.1%} of the call unexplained.")
    return found + (_sustained_warnings(result.sustained) if result.sustained else [])


def _sustained_warnings(found: Mapping[str, Any]) -> list[str]:
    """Return what a sustained run says, each in the words of what showed it."""
    said = []
    if found["is_slower"]:
        said.append(f"the end was {found['ratio']:.2f} times as slow as the start")
    if found["num_throttled"]:
        said.append(f"the kernel counted {found['num_throttled']:.0f} times of throttling")
    return [f"Under sustained load {text}." for text in said]
