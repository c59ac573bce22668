"""What int8 costs in masks: ours beside NNCF and ONNX Runtime's quantize_static, same images.

    .venv/bin/python -m benchmarks.int8_accuracy [--model M ...] [--only QUANTIZER ...]
                     [--data camvid:PATH]

For each trained CamVid checkpoint and quantiser: mIoU on the validation split against that of
onnx-fp32, and the share of pixels that decide as fp32 does. All calibrate on the train split, NNCF
and quantize_static by their documentation on the images that our calibration chose. The graph for
TensorRT (symmetric, zero point 0, its rest in fp16) is run by ONNX Runtime: no GPU is here.
`default.toml` is the policy of backends without one: symmetric, no node singled out. Rows are kept
by the digest of what was judged. Writes benchmarks/results/int8_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.progress import track

from segdeploy.backends import open_session
from segdeploy.core.files import sha256_file, write_json
from segdeploy.core.folder import Artifact, load_artifact, load_checkpoint
from segdeploy.core.preprocess import fit_image, normalize_image, restore_labels
from segdeploy.core.results import read_result
from segdeploy.core.scores import mean_iou
from segdeploy.core.target import Precision
from segdeploy.data import TRAIN, Sample, open_dataset
from segdeploy.export import export
from segdeploy.export.calibration import open_calibration
from segdeploy.export.graphs import convert_precision, find_ranges
from segdeploy.export.stage import NUM_CALIBRATION_IMAGES
from segdeploy.graph.policy import shipped_policy
from segdeploy.graph.proto import graph_bytes, load_graph
from segdeploy.metrics import ConfusionMatrix

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "int8_accuracy.json"
RUN = Path("runs/int8-accuracy")
MODELS = ("unet", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")
TARGETS = ("onnx-int8", "openvino-int8", "executorch-int8")
BASE = "onnx-fp32"
PLAIN_POLICY = str(HERE.parent / "segdeploy" / "graph" / "policies" / "default.toml")
Run = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One checkpoint with the images that calibrate and judge it."""

    model: str
    data: str
    checkpoint: Path
    size: tuple[int, int]
    run: Path
    num_images: int = NUM_CALIBRATION_IMAGES

    def artifact(self, target: str, policy: str = "default") -> Artifact:
        """Build or reuse an artifact; `policy` as `--int8-policy` takes it."""
        name = None if policy == "default" else f"{target}-plain"
        outcomes = export(
            self.checkpoint, [target], self.run, size=self.size, calibration=self.data,
            num_calibration_images=self.num_images, int8_policy=policy, name=name,
        )  # fmt: skip
        return load_artifact(next(o.path for o in outcomes if o.target == target))

    def batches(self, split: str) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
        """Yield the samples of a split, each with its float32 batch (1, 3, H, W)."""
        found = open_dataset(self.data, split)
        preprocess = self.artifact(BASE).manifest.preprocess
        for index in range(len(found)):
            batch = normalize_image(fit_image(found[index].image, preprocess), preprocess)
            yield found[index], np.ascontiguousarray(batch[None])

    def calibration(self) -> list[NDArray[np.float32]]:
        """Return the batches of the images that our own calibration chose."""
        written = self.artifact("onnx-int8").path / "calibration.json"
        names = {image["name"] for image in json.loads(written.read_bytes())["images"]}
        return [batch for sample, batch in self.batches(TRAIN) if sample.name in names]


def segdeploy_target(case: Case, target: str, policy: str = "default") -> tuple[Run, str]:
    """Open one of our artifacts."""
    artifact = case.artifact(target, policy)
    session = open_session(artifact)
    return lambda batch: session.run(batch)["logits"], artifact.manifest.digest


def tensorrt_graph(case: Case) -> tuple[Run, str]:
    """Run the graph that a tensorrt-int8 engine is built from."""
    base = case.artifact(BASE)
    plain, policy = load_graph(base.payload), shipped_policy("tensorrt")
    images = open_calibration(case.data, case.num_images)
    graph, _ = convert_precision(
        plain,
        Precision.INT8,
        lambda: find_ranges(plain, images, base.manifest.preprocess, None, policy),
        rest=Precision.FP16,
        policy=policy,
    )
    target = case.run / "tensorrt-int8.onnx"
    target.write_bytes(graph_bytes(graph))
    # Its optimiser changes what this graph computes (Q/DQ between fp16 nodes, on a CPU): off.
    return run_onnx(target, optimized=False), sha256_file(target)


def onnx_quantize_static(case: Case) -> tuple[Run, str]:
    """Run what ONNX Runtime's own quantiser makes."""
    graph = quantize_statically(case)
    return run_onnx(graph), sha256_file(graph)


def quantize_statically(case: Case) -> Path:
    """Quantise by ONNX Runtime's documentation: preprocess, then QDQ, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # It has no types.
        def __init__(self) -> None:
            self.batches = iter(case.calibration())

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"tensor": batch}

    target = case.run / "quantize_static.onnx"
    if not target.exists():
        ready, plain = case.run / "quant_pre_process.onnx", case.artifact(BASE).payload.resolve()
        with chdir(case.run):  # Where it fails, it leaves a file in the current folder.
            quant_pre_process(plain, ready.name)
        quantize_static(
            ready, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True
        )  # fmt: skip
    return target


def nncf_on_onnx(case: Case) -> tuple[Run, str]:
    """Quantise the ONNX graph by NNCF's documentation."""
    import nncf

    target = case.run / "nncf.onnx"
    if not target.exists():
        batches = [{"tensor": batch} for batch in case.calibration()]
        model = onnx.load(str(case.artifact(BASE).payload))
        quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
        onnx.save(quantized, str(target))
    return run_onnx(target), sha256_file(target)


def nncf_on_openvino(case: Case) -> tuple[Run, str]:
    """Run what NNCF makes of the OpenVINO model."""
    import openvino

    target = quantize_by_nncf(case)
    compiled = openvino.Core().compile_model(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: np.asarray(compiled(batch)[0]), sha256_file(target.with_suffix(".bin"))


def quantize_by_nncf(case: Case) -> Path:
    """Quantise the OpenVINO model by NNCF's documentation."""
    import nncf
    import openvino

    target = case.run / "nncf.xml"
    if not target.exists():
        batches = case.calibration()
        model = openvino.Core().read_model(case.artifact(BASE).payload)
        quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
        openvino.save_model(quantized, target, compress_to_fp16=False)
    return target


def run_onnx(graph: Path, *, optimized: bool = True) -> Run:
    """Return a run of an ONNX file by ONNX Runtime, as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


QUANTIZERS: dict[str, Callable[[Case], tuple[Run, str]]] = {
    **{f"segdeploy {t}": partial(segdeploy_target, target=t) for t in TARGETS},
    "segdeploy tensorrt-int8 (graph)": tensorrt_graph,
    "segdeploy onnx-int8 by default.toml": partial(
        segdeploy_target, target="onnx-int8", policy=PLAIN_POLICY
    ),
    "NNCF on OpenVINO": nncf_on_openvino,
    "NNCF on ONNX": nncf_on_onnx,
    "ONNX Runtime quantize_static": onnx_quantize_static,
}


def judge(case: Case, run: Run) -> tuple[float, float]:
    """Return (mIoU, share of pixels that decide as fp32) on the validation split."""
    manifest = case.artifact(BASE).manifest
    session = open_session(case.artifact(BASE))
    confusion = ConfusionMatrix(len(manifest.classes))
    same: list[float] = []
    for sample, batch in case.batches("val"):
        labels = run(batch).argmax(axis=1)[0].astype(np.uint8)
        wanted = session.run(batch)["logits"].argmax(axis=1)[0]
        same.append(float((labels == wanted).mean()))
        size = (sample.image.shape[0], sample.image.shape[1])
        confusion.update(sample.label, restore_labels(labels, size, manifest.preprocess))
    return float(mean_iou(confusion.counts)), float(np.mean(same))


def save(found: dict[str, Any], rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Write what is known so far."""
    order = [(m, q) for m in MODELS for q in QUANTIZERS]
    found["rows"] = [rows[key] for key in order if key in rows]
    write_json(RESULTS, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--only", action="append", choices=list(QUANTIZERS))
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    options = parser.parse_args()
    found = read_result(RESULTS) or {"rows": [], "base": {}}
    rows = {(row["model"], row["quantizer"]): row for row in found["rows"]}
    for model in options.model or MODELS:
        checkpoint = HERE / "checkpoints" / f"{model}-camvid"
        size = load_checkpoint(checkpoint).manifest.design_size
        if size is None:
            raise SystemExit(f"{checkpoint} does not say its design size")
        case = Case(model, options.data, checkpoint, size, RUN / model)
        base_run, base_digest = segdeploy_target(case, BASE)
        if found["base"].get(model, {}).get("digest") != base_digest:
            found["base"][model] = {"digest": base_digest, "mean_iou": judge(case, base_run)[0]}
        base = found["base"][model]["mean_iou"]
        for name in track(options.only or QUANTIZERS, model):
            try:
                run, digest = QUANTIZERS[name](case)
            except Exception as error:
                if name.startswith("segdeploy"):
                    raise
                rows[model, name] = {"model": model, "quantizer": name, "error": str(error)[:200]}
                save(found, rows)
                continue
            if rows.get((model, name), {}).get("digest") == digest:
                continue
            score, agreement = judge(case, run)
            rows[model, name] = {
                "model": model, "quantizer": name, "mean_iou": score,
                "drop_points": 100 * (base - score), "agreement": agreement, "digest": digest,
            }  # fmt: skip
            save(found, rows)
    for row in found["rows"]:
        if "error" in row:
            continue
        print(f"{row['model']:32} {row['quantizer']:34} {row['drop_points']:+.2f} "
              f"{row['agreement']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
