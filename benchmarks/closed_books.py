"""Do the regions of a call add up to it? Every target of this machine, image to label map.

    .venv/bin/python benchmarks/closed_books.py RUN [--seconds 4] [--size HxW] [--threads N]

RUN holds the artifacts of one model, e.g. of benchmarks/target_matrix.py; the trained checkpoint of
LRASPP is measured beside them. LiteRT needs SEGDEPLOY_PYTHON_LITERT. Writes
benchmarks/results/closed_books.json after each group, and leaves out what is there already
unless --again. A target that cannot run here is listed with the reason.

That the parts add up says nothing of whether each has its own time: `books_from_outside.py` takes
the same calls by a clock around the session, and the regions must agree with it. Wants an idle
machine for its milliseconds only. Exits 1 if a remainder, or that distance, is above 2 % of a call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from segdeploy.backends.isolation import find_python
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.child import child_environment
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_folder
from segdeploy.core.results import BenchResult
from segdeploy.core.sizes import parse_size
from segdeploy.measure import describe_environment

HERE = Path(__file__).parent
RESULT = HERE / "results" / "closed_books.json"
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
MOST = 0.02
GROUP = 4  # Artifacts in one interleaved run.


def check(result: BenchResult, size: str, seconds: float) -> dict[str, float]:
    """Return how far the books are off a clock around the session, as shares of the whole call."""
    path = Path(result.path)
    python = find_python(load_folder(path))
    answer = subprocess.run(
        [python, "-m", "benchmarks.books_from_outside", path, size, f"{seconds}"],
        cwd=HERE.parent, env={**os.environ, **child_environment(result.environment["threads"])},
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    whole_ms = (result.regions_ms or {})["end_to_end"]
    found = json.loads(answer.splitlines()[-1])
    return {f"{name}_off_share": each["distance_ms"] / whole_ms for name, each in found.items()}


def row(result: BenchResult) -> dict[str, Any]:
    regions = result.regions_ms or {}
    whole = regions["end_to_end"]
    worst = max(
        abs(ms - sum(parts)) / ms
        for ms, parts in zip(
            result.samples_ms, zip(*result.region_samples_ms.values(), strict=True), strict=True
        )
    )
    return {
        "target": result.target,
        "regions_ms": regions,
        "remainder_share": regions["remainder"] / whole,
        "worst_call_share": worst,
        "num_samples": len(result.samples_ms),
        "p50_ms": result.latency_ms["p50"],
        "threads": result.environment["threads"],
    }


def measure(
    group: list[Path], size: tuple[int, int], seconds: float, threads: int | None = None
) -> list[dict[str, Any]]:
    try:
        plan = BenchPlan(size, threads=threads, seconds=seconds, end_to_end=True)
        outcome = measure_interleaved(group, plan, save=False)
    except SegDeployError as error:
        return [{"target": path.name, "error": error.message} for path in group]
    height, width = size
    done = [
        {**row(result), **check(result, f"{height}x{width}", seconds)} for result in outcome.results
    ]
    found = {result.path for result in outcome.results}
    missing = [path for path in group if str(path) not in found]
    errors = [
        {"target": load_folder(path).name, "error": error.message.rpartition(": ")[2]}
        for path, error in zip(missing, outcome.failures, strict=True)
    ]
    return done + errors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--again", action="store_true")
    told = parser.parse_args()
    size = parse_size(told.size)
    if size is None:
        parser.error("--size needs one size, HxW")
    folders = [
        CHECKPOINT, *sorted(f.parent for f in told.run.glob("[!.]*/manifest.json"))
    ]  # fmt: skip
    is_new = told.again or not RESULT.exists()
    rows: list[dict[str, Any]] = [] if is_new else json.loads(RESULT.read_bytes())["rows"]
    known = {each["target"] for each in rows if "error" not in each}
    left = [folder for folder in folders if load_folder(folder).name not in known]
    rows = [each for each in rows if each["target"] in known]
    for start in range(0, len(left), GROUP):
        group = left[start : start + GROUP]
        rows += measure(group, size, told.seconds, told.threads)
        write_json(RESULT, {
            "size": told.size, "limit": MOST, "rows": rows, "environment": describe_environment(),
        })  # fmt: skip
    for each in rows:
        if "error" in each:
            print(f"{each['target']:20} {each['error']}")
        else:
            print(
                f"{each['target']:20} {each['p50_ms']:8.2f} ms, remainder "
                f"{each['remainder_share']:.3%}, worst call {each['worst_call_share']:.3%}, off by "
                f"{each.get('runtime_off_share', 0.0):.1%} (runtime), "
                f"{each.get('preprocess_off_share', 0.0):.1%} (preprocess)"
            )
    sys.exit(any(not closes(each) for each in rows))


def closes(row: dict[str, Any]) -> bool:
    """Return whether the books of a row add up, and agree with what was measured without books."""
    is_whole = abs(row.get("remainder_share", 0.0)) <= MOST
    off = [row.get(f"{name}_off_share", 0.0) for name in ("runtime", "preprocess")]
    return is_whole and bool(max(off) <= MOST)


if __name__ == "__main__":
    main()
