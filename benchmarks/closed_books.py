"""Do the regions of a call add up to it? Every target of this machine, image to label map.

    .venv/bin/python benchmarks/closed_books.py RUN [--seconds 4] [--size HxW] [--threads N]

RUN holds the artifacts of one model, e.g. of benchmarks/target_matrix.py; the trained checkpoint of
LRASPP is measured beside them. LiteRT needs SEGDEPLOY_PYTHON_LITERT. Writes
benchmarks/results/closed_books.json after each group, and leaves out what is there already
unless --again. A target that cannot run here is listed with the reason.

That the parts add up says nothing of whether each has its own time, so two of them are measured
again without books: what the runtime alone takes must lie between `run` and `run` with its copies
(and `postprocess`, where such a call brings low-resolution logits to labels), and `preprocess` must
not be shorter than the same work alone. Wants an idle machine. Exits 1 if a remainder is above 2 %
of the call, or one of these is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.bench.inputs import make_batch
from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import normalize_image
from segdeploy.core.results import BenchResult
from segdeploy.core.sizes import parse_size
from segdeploy.measure import describe_environment, sample_ms

HERE = Path(__file__).parent
RESULT = HERE / "results" / "closed_books.json"
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
MOST = 0.02
MOST_OFF = 0.1  # Two runs of one program differ by a few percent.
GROUP = 4  # Artifacts in one interleaved run.


def runtime_off(regions: dict[str, float], plain_ms: float, output: OutputKind) -> float:
    """Return how far a plain call's latency lies beside what its regions took, as a share of it."""
    most = sum(regions[name] for name in ("host_to_device", "run", "device_to_host"))
    if output is OutputKind.LOW_LOGITS:
        most += regions["postprocess"]
    return max(0.0, regions["run"] - plain_ms, plain_ms - most) / plain_ms


def preprocess_ms(manifest: Manifest, size: tuple[int, int]) -> float:
    """Return what it takes to make the runtime's input of an image, without a runtime beside it."""
    if manifest.io.input is InputKind.IMAGE:
        return 0.0
    (image,) = make_batch(manifest, size, 1, as_images=True)
    return median(sample_ms(lambda: normalize_image(image, manifest.preprocess), 0.2, at_least=20))


def check(result: BenchResult, plain: BenchResult) -> dict[str, float]:
    """Return by how much the books of a result are off what is measured without books."""
    manifest, regions = load_folder(Path(result.path)).manifest, result.regions_ms or {}
    plain_ms = median(plain.samples_ms)
    height, width = result.input_shape[1:3]
    alone_ms = preprocess_ms(manifest, (height, width))
    short = (alone_ms - regions["preprocess"]) / alone_ms if alone_ms else 0.0
    return {
        "plain_p50_ms": plain_ms,
        "runtime_off_share": runtime_off(regions, plain_ms, manifest.io.output),
        "preprocess_alone_ms": alone_ms,
        "preprocess_off_share": max(0.0, short),
    }


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
    group: list[Path], size: tuple[int, int] | None, seconds: float, threads: int | None = None
) -> list[dict[str, Any]]:
    try:
        plan = BenchPlan(size, threads=threads, seconds=seconds, end_to_end=True)
        outcome = measure_interleaved(group, plan, save=False)
        again = measure_interleaved(group, replace(plan, end_to_end=False), save=False)
    except SegDeployError as error:
        return [{"target": path.name, "error": error.message} for path in group]
    plain = {result.path: result for result in again.results}
    done = [
        {**row(result), **(check(result, plain[result.path]) if result.path in plain else {})}
        for result in outcome.results
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
        rows += measure(group, parse_size(told.size), told.seconds, told.threads)
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
    return is_whole and bool(max(off) <= MOST_OFF)


if __name__ == "__main__":
    main()
