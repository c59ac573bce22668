"""How often a gate is wrong: real gates on this machine, the truth planted, beside naive gates.

    .venv/bin/python -m benchmarks.gate_errors [--part quiet|neighbour] [--limit N]

LRASPP-MobileNetV3 at 224x224 on ONNX Runtime against itself, whose calls a planted worker lengthens
by nothing, 6 % and 12 %. Every trial is one gate of 8 s with d = 3 %, and one run as a script in CI
would do it: start the one, take 100 calls after ten of warm-up, then the other, and compare (mean,
95th percentile or median more than 5 % up). `neighbour`: a process beside it keeps one core busy.
Trials are taken in turn and kept one by one, so that it can be stopped and goes on where it was.
Writes benchmarks/results/gate_errors.json; docs/gate.md shows it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.planted_worker import PLANTED, PlantedChild
from segdeploy.bench.child import BenchChild
from segdeploy.bench.inputs import make_batch
from segdeploy.core.files import write_json
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.core.limits import GateLimits
from segdeploy.core.results import read_result
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.workflows.gate import GatePlan, free_cores, gate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gate_errors.json"
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
SIZE, BUDGET_S, LIMIT = (224, 224), 8.0, 0.03
TRIALS = {0.0: 60, 0.06: 30, 0.12: 30}
NAIVE_LIMIT, NAIVE_CALLS, NAIVE_WARM_UP_S = 1.05, 100, 0.06
SPIN = "while True: pass"


def prepare() -> Artifact:
    """Export the artifact once."""
    run = Path("runs/gate-errors")
    export(CHECKPOINT, ["onnx-fp32"], run, size=SIZE)
    return load_artifact(run / f"onnx-fp32+{SIZE[0]}x{SIZE[1]}")


@contextmanager
def neighbour(*, is_there: bool) -> Iterator[None]:
    """Keep a core busy for the block."""
    if not is_there:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def planted(share: float) -> Iterator[None]:
    """Slow the candidate's workers down."""
    os.environ[PLANTED] = f"slow:{share}"
    try:
        yield
    finally:
        del os.environ[PLANTED]


def run_trial(artifact: Artifact, part: str, share: float) -> dict[str, Any]:
    """Return what the gate says, and what the naive ones measure."""
    with neighbour(is_there=part == "neighbour"), planted(share):
        result = gate(
            artifact.path, artifact.path,
            plan=GatePlan(budget_s=BUDGET_S, check_parity=False),
            limits=GateLimits(latency=LIMIT), start=PlantedChild,
        )  # fmt: skip
        first, second = (_sequential(artifact, start) for start in (BenchChild, PlantedChild))
    return {
        "part": part, "share": share, "verdict": str(result.verdict),
        "ratio": result.latency.ratio if result.latency else None,
        "ratio_ci": result.latency.ratio_ci if result.latency else None,
        "launches": len(result.samples["launches"]), "seconds": result.seconds,
        "threads": result.environment["threads"],
        "naive": {
            "mean": float(np.mean(second) / np.mean(first)),
            "p95": float(np.percentile(second, 95) / np.percentile(first, 95)),
            "median": float(np.median(second) / np.median(first)),
        },
    }  # fmt: skip


def _sequential(artifact: Artifact, start: type[BenchChild]) -> list[float]:
    """Return the latencies of one process, in ms, as a script in CI would take them."""
    threads = os.cpu_count() or 1  # Whatever else runs.
    with TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.npy"
        np.save(batch, make_batch(artifact.manifest, SIZE, 1))
        child = start(artifact, threads, 120.0)
        try:
            child.ask(
                "open", path=str(artifact.path.resolve()), device="cpu", threads=threads,
                batch=str(batch), end_to_end=False,
            )  # fmt: skip
            child.ask("sample", seconds=NAIVE_WARM_UP_S)
            found: list[float] = []
            while len(found) < NAIVE_CALLS:
                found += child.ask("sample", seconds=0.2)["samples_ms"]
        finally:
            child.stop()
    return found[:NAIVE_CALLS]


def summarise(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per part and planted share: how often each gate said what."""
    rows = []
    for part in ("quiet", "neighbour"):
        for share in TRIALS:
            found = [t for t in trials if (t["part"], t["share"]) == (part, share)]
            if not found:
                continue
            verdicts = [t["verdict"] for t in found]
            rows.append({
                "part": part, "share": share, "trials": len(found),
                "threads": sorted({t["threads"] for t in found}),
                **{v: verdicts.count(v) for v in ("regression", "inconclusive", "pass")},
                "improvement": verdicts.count("improvement"),
                "median_seconds": float(np.median([t["seconds"] for t in found])),
                "naive": {
                    name: sum(t["naive"][name] > NAIVE_LIMIT for t in found)
                    for name in ("mean", "p95", "median")
                },
            })  # fmt: skip
    return rows


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", action="append", choices=["quiet", "neighbour"])
    parser.add_argument("--limit", type=int, help="most trials of this call")
    options = parser.parse_args()
    artifact = prepare()
    stored = read_result(RESULTS) or {}
    trials: list[dict[str, Any]] = stored.get("trials", [])
    missing = []
    for part in options.part or ["quiet", "neighbour"]:
        for index in range(max(TRIALS.values())):
            for share, wanted in TRIALS.items():
                done = sum((t["part"], t["share"]) == (part, share) for t in trials)
                if done <= index < wanted:
                    missing.append((part, share))
    for part, share in track(missing[: options.limit], "gates"):
        trials.append(run_trial(artifact, part, share))
        document = {
            "size": SIZE, "budget_s": BUDGET_S, "limit": LIMIT, "naive_limit": NAIVE_LIMIT,
            "rows": summarise(trials), "environment": describe_environment(), "trials": trials,
        }  # fmt: skip
        write_json(RESULTS, document)
    free, busy = free_cores()
    print(f"{len(trials)} trials; {free} cores free now, {busy:.1f} busy")


if __name__ == "__main__":
    main()
