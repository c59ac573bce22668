"""The four targets of a CamVid checkpoint: exported, verified, evaluated, benched in one run.

    .venv/bin/python benchmarks/camvid_targets.py [CHECKPOINT] [--data camvid:PATH]

Writes benchmarks/results/camvid_targets.json; `render_docs.py` makes README's table of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from segdeploy.bench import bench
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_folder
from segdeploy.evaluate import evaluate
from segdeploy.workflows import export_and_verify

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
TARGETS = ("torchscript-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8")
SIZE = (360, 480)


def measure(checkpoint: Path, data: str, run: Path) -> dict[str, Any]:
    exports = export_and_verify(checkpoint, TARGETS, run, calibration=data, data=data)
    folders = [checkpoint, *(each.outcome.path for each in exports)]
    scores = [evaluate(folder, data=data, save=False) for folder in folders]
    costs = bench(folders, size=SIZE, seconds=6.0, save=False)
    base = costs[0].latency_ms["p50"] or float("nan")
    rows = []
    for folder, score, cost, each in zip(folders, scores, costs, [None, *exports], strict=True):
        parity = each.report if each else None
        latency = cost.latency_ms
        rows.append(
            {
                "target": cost.target,
                "size_mib": load_folder(folder).size_mib,
                "export_seconds": each.outcome.seconds if each else None,
                "passed": each.passed if each else None,
                "flip_rate": parity.flip_rate if parity else None,
                "hard_flip_rate": parity.hard_flip_rate if parity else None,
                "mean_iou": score.mean_iou,
                "pixel_accuracy": score.pixel_accuracy,
                "class_iou": score.class_iou,
                "latency_ms": latency,
                "latency_ratio": (latency["p50"] or float("nan")) / base,
                "num_samples": len(cost.samples_ms),
                "peak_memory_mib": cost.peak_memory_mib,
            }
        )
    environment = {k: v for k, v in costs[0].environment.items() if k != "warnings"}
    return {"data": "camvid/val", "size": SIZE, "rows": rows, "environment": environment}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--run", type=Path, help="keep the artifacts in this run folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.checkpoint, options.data, options.run or Path(scratch))
    write_json(HERE / "results" / "camvid_targets.json", found)
    for row in found["rows"]:
        print(row["target"], f"mIoU {row['mean_iou']:.4f}", f"ratio {row['latency_ratio']:.2f}")
