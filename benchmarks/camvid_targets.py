"""The four targets of a CamVid checkpoint: exported, verified, evaluated, benched in one run.

    .venv/bin/python benchmarks/camvid_targets.py [CHECKPOINT] [--data camvid:PATH]

Writes benchmarks/results/camvid_targets.json; `render_docs.py` makes README's table of it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdeploy.backends import open_session
from segdeploy.bench import bench
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_folder
from segdeploy.core.preprocess import normalize_image
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.workflows import export_and_verify

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
TARGETS = ("torchscript-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8")
SIZE = (360, 480)
SIZES = ((1, 360, 480), (2, 520, 520), (1, 225, 231), (3, 97, 513))


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
    sizes = compare_sizes(folders, data)
    environment = {k: v for k, v in costs[0].environment.items() if k not in {"warnings", "beside"}}
    return {"data": "camvid/val", "size": SIZE, "rows": rows, "sizes": sizes,
            "environment": environment}  # fmt: skip


def compare_sizes(folders: list[Path], data: str) -> list[dict[str, Any]]:
    """Share of flipped pixels against the checkpoint, for each artifact at each input size."""
    images = open_dataset(data, "val")
    rows = []
    sessions = [open_session(load_folder(folder)) for folder in folders]
    spec = load_folder(folders[0]).manifest.preprocess
    for batch_size, height, width in SIZES:
        pictures = [
            np.asarray(Image.fromarray(images[i].image).resize((width, height)))
            for i in range(batch_size)
        ]
        batch = np.stack([normalize_image(picture, spec) for picture in pictures])
        reference, *others = [s.run(batch)["logits"].argmax(1) for s in sessions]
        flips = {
            folder.name: float((found != reference).mean())
            for folder, found in zip(folders[1:], others, strict=True)
        }
        rows.append({"shape": [batch_size, height, width], "flip_rate": flips})
    return rows


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
