"""What each way to calibrate does to masks: the reason of the defaults.

    .venv/bin/python -m benchmarks.calibration_options [--model M ...] [--data camvid:PATH]
                     [--every 1]

For each trained CamVid checkpoint and each option of calibration: the share of pixels of the
validation split that decide as onnx-fp32 does, and mIoU against it, of the graph of onnx-int8 by
its shipped policy, in ONNX Runtime as an artifact is opened there. 32 images of the train split
calibrate. `--every N` judges on every N-th image. Rows stay between runs, unless the recipe of int8
graphs has changed. Writes benchmarks/results/calibration_options.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from segdeploy.core.files import write_json
from segdeploy.core.folder import load_artifact, load_checkpoint
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import fit_image, normalize_image, restore_labels
from segdeploy.core.results import read_result
from segdeploy.core.scores import mean_iou
from segdeploy.core.target import ClipMethod
from segdeploy.data import VAL, Sample, open_dataset
from segdeploy.export import Int8Options, export
from segdeploy.export.calibration import RECIPE, CalibrationSet, open_calibration
from segdeploy.export.coverage import spread
from segdeploy.export.graphs import quantize
from segdeploy.graph.byte_kernels import use_byte_kernels
from segdeploy.graph.policy import shipped_policy
from segdeploy.graph.proto import graph_bytes, load_graph
from segdeploy.metrics import ConfusionMatrix

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "calibration_options.json"
RUN = Path("runs/calibration-options")
MODELS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "unet")
NUM_IMAGES = 32
PLAIN = Int8Options()
OPTIONS = {
    "mse": PLAIN,
    "min-max": replace(PLAIN, method=ClipMethod.MIN_MAX),
    "percentile 99.9": replace(PLAIN, method=ClipMethod.PERCENTILE, percentile=99.9),
    "percentile 99.99": replace(PLAIN, method=ClipMethod.PERCENTILE, percentile=99.99),
    "entropy": replace(PLAIN, method=ClipMethod.ENTROPY),
    "mse, even spread of images": PLAIN,
    "mse, equalised": replace(PLAIN, equalize=True),
    "mse, biases corrected": replace(PLAIN, correct_bias=True),
    "mse, both": replace(PLAIN, equalize=True, correct_bias=True),
}


class Judge:
    """The validation images of one model, and what fp32 says of them."""

    def __init__(self, plain: onnx.ModelProto, manifest: Manifest, data: str, every: int) -> None:
        self.manifest = manifest
        dataset = open_dataset(data, VAL)
        self.samples: list[Sample] = [dataset[i] for i in range(0, len(dataset), every)]
        self.reference = list(self.labels(plain))

    def labels(self, model: onnx.ModelProto) -> Iterator[NDArray[Any]]:
        """Yield the label map of each image at its own size."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            graph_bytes(model), options, providers=["CPUExecutionProvider"]
        )
        spec = self.manifest.preprocess
        for sample in self.samples:
            batch = normalize_image(fit_image(sample.image, spec), spec)[None]
            logits = session.run(None, {session.get_inputs()[0].name: batch})[0]
            found = logits.argmax(axis=1)[0].astype(np.uint8)
            yield restore_labels(found, sample.image.shape[:2], spec)

    def score(self, model: onnx.ModelProto) -> dict[str, float]:
        """Return mean IoU, and the share of all pixels that decide as fp32 does."""
        count = ConfusionMatrix(len(self.manifest.classes))
        agreeing = total = 0
        for sample, found, right in zip(
            self.samples, self.labels(model), self.reference, strict=True
        ):
            count.update(sample.label, found)
            agreeing += int(np.count_nonzero(found == right))
            total += found.size
        return {"mean_iou": float(mean_iou(count.counts)), "agreement": agreeing / total}


def judge_model(model: str, data: str, every: int, rows: dict[tuple[str, str], Any]) -> None:
    """Add what is missing of a model's rows, and save after each."""
    checkpoint = HERE / "checkpoints" / f"{model}-camvid"
    size = load_checkpoint(checkpoint).manifest.design_size
    done = export(checkpoint, ["onnx-fp32"], RUN / model, size=size)
    folder = load_artifact(done[0].path)
    plain = load_graph(folder.payload)
    judge = Judge(plain, folder.manifest, data, every)
    images = open_calibration(data, NUM_IMAGES)
    even = CalibrationSet(data, images.dataset, spread(len(images.dataset), NUM_IMAGES))
    if (model, "fp32") not in rows:
        save(rows, (model, "fp32"), judge.score(plain), every)
    for name, options in OPTIONS.items():
        if (model, name) not in rows:
            chosen = replace(even if "even" in name else images, options=options)
            graph, _ = quantize(
                plain, chosen, folder.manifest.preprocess, policy=shipped_policy("onnx")
            )
            opened = use_byte_kernels(graph, unsigned=True)
            save(rows, (model, name), judge.score(opened), every)


def save(
    rows: dict[tuple[str, str], Any], key: tuple[str, str], found: dict[str, float], every: int
) -> None:
    """Write all rows."""
    rows[key] = {"model": key[0], "options": key[1], "every": every, **found}
    print(rows[key], flush=True)
    write_json(RESULTS, {"num_images": NUM_IMAGES, "recipe": RECIPE, "rows": list(rows.values())})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--every", type=int, default=1)
    chosen = parser.parse_args()
    kept = read_result(RESULTS) or {}
    known = kept["rows"] if kept.get("recipe") == RECIPE else []
    rows = {(r["model"], r["options"]): r for r in known if r["every"] == chosen.every}
    for model in chosen.model:
        judge_model(model, chosen.data, chosen.every, rows)


if __name__ == "__main__":
    main()
