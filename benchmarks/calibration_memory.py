"""What calibration costs in memory and time: flat in the number of images, or it does not stream.

    .venv/bin/python -m benchmarks.calibration_memory [--images 8 32 128] [--data camvid:PATH]

deeplabv3_resnet50 (seeded weights: neither depends on them) at 520x520, images of CamVid's train
split. Each count is a process of its own, whose peak resident memory the system tells. What was
measured by the same code stays, so that the long run goes on where it was stopped. Writes
benchmarks/results/calibration_memory.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.target_matrix import Place, save_untrained
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_folder
from segdeploy.core.results import read_result
from segdeploy.export import export
from segdeploy.measure import describe_environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "calibration_memory.json"
RUN = Path("runs/calibration-memory")
MODEL, SIZE = "deeplabv3_resnet50", (520, 520)
CODE = ("graph/calibrate.py", "graph/clipping.py", "graph/placement.py", "export/calibration.py")
LIMIT_MIB = 4096


def plain_artifact(data: str) -> Path:
    """Build or reuse the fp32 graph."""
    place = Place(RUN, data)
    save_untrained(place, MODEL)
    return export(place.checkpoint(MODEL), ["onnx-fp32"], RUN / MODEL, size=SIZE)[0].path


def calibrate_here(artifact: Path, data: str, num_images: int) -> dict[str, Any]:
    """Calibrate in this process and return what it cost."""
    from segdeploy.export.calibration import open_calibration
    from segdeploy.export.graphs import find_ranges
    from segdeploy.graph.proto import load_graph

    folder = load_folder(artifact)
    plain = load_graph(folder.payload)
    images = open_calibration(data, num_images)
    start = time.perf_counter()
    ranges = find_ranges(plain, images, folder.manifest.preprocess, None)
    return {
        "images": len(images.indices),
        "tensors": len(ranges),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure(artifact: Path, data: str, num_images: int) -> dict[str, Any]:
    """Return what a fresh process needs for so many images."""
    command = [sys.executable, "-m", "benchmarks.calibration_memory", "--child", str(artifact)]
    command += ["--data", data, "--images", str(num_images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def code_digest() -> str:
    """Return the identity of the code whose cost this is."""
    package = HERE.parent / "segdeploy"
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in CODE)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--child", type=Path)
    chosen = parser.parse_args()
    if chosen.child is not None:
        print(json.dumps(calibrate_here(chosen.child, chosen.data, chosen.images[0])))
        return
    code = code_digest()
    before = read_result(RESULTS) or {}
    rows = {row["images"]: row for row in before.get("rows", []) if before.get("code") == code}
    artifact = plain_artifact(chosen.data)
    for count in chosen.images:
        if count in rows:
            continue
        rows[count] = measure(artifact, chosen.data, count)
        print(rows[count], flush=True)
        found = {
            "model": MODEL, "size": list(SIZE), "limit_mib": LIMIT_MIB, "code": code,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "rows": [rows[key] for key in sorted(rows)],
            "environment": describe_environment(),
        }  # fmt: skip
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
