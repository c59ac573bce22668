"""Do the regions of a call add up to it? Every target of this machine, image to label map.

    .venv/bin/python benchmarks/closed_books.py RUN [--seconds 4] [--size 360x480] [--again]

RUN holds the artifacts of one model, e.g. of benchmarks/target_matrix.py; the trained checkpoint of
LRASPP is measured beside them. LiteRT needs SEGDEPLOY_PYTHON_LITERT. Writes
benchmarks/results/closed_books.json after each group, and leaves out what is there already
unless --again. A target that cannot run here is listed with the reason. Exits 1 if a remainder
is above 2 % of the call.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from segdeploy.bench import BenchPlan, measure_interleaved
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
    group: list[Path], size: tuple[int, int] | None, seconds: float
) -> list[dict[str, Any]]:
    try:
        plan = BenchPlan(size, seconds=seconds, end_to_end=True)
        outcome = measure_interleaved(group, plan, save=False)
    except SegDeployError as error:
        return [{"target": path.name, "error": error.message} for path in group]
    done = [row(result) for result in outcome.results]
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
    parser.add_argument("--again", action="store_true")
    told = parser.parse_args()
    folders = [
        CHECKPOINT, *sorted(f.parent for f in told.run.glob("[!.]*/manifest.json"))
    ]  # fmt: skip
    is_new = told.again or not RESULT.exists()
    rows: list[dict[str, Any]] = [] if is_new else json.loads(RESULT.read_bytes())["rows"]
    known = {each["target"] for each in rows if "error" not in each}
    left = [folder for folder in folders if load_folder(folder).name not in known]
    rows = [each for each in rows if each["target"] in known]
    for start in range(0, len(left), GROUP):
        rows += measure(left[start : start + GROUP], parse_size(told.size), told.seconds)
        write_json(RESULT, {
            "size": told.size, "limit": MOST, "rows": rows, "environment": describe_environment(),
        })  # fmt: skip
    for each in rows:
        if "error" in each:
            print(f"{each['target']:20} {each['error']}")
        else:
            print(
                f"{each['target']:20} {each['p50_ms']:8.2f} ms, remainder "
                f"{each['remainder_share']:.3%}, worst call {each['worst_call_share']:.3%}"
            )
    sys.exit(any(abs(each.get("remainder_share", 0.0)) > MOST for each in rows))


if __name__ == "__main__":
    main()
