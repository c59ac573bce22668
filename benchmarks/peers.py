"""segdeploy beside what a user would write instead: image to label map, same weights, same images.

    .venv/bin/python -m benchmarks.peers [--case lraspp ...] [--build | --score | --time]
                     [--data camvid:PATH] [--rounds 12] [--seconds 1.0]

* lraspp, deeplabv3, unet: the CamVid checkpoints of this repository at their design size;
* smp: `smp.Unet("resnet34")` by the notebook of segmentation-models-pytorch (torch.onnx.export,
  then ONNX Runtime), against the same weights through `segdeploy import`. Nobody trained it, so it
  has no mIoU, and int8 and bf16 say nothing there.

Peers: PyTorch eager and `torch.compile`; ONNX Runtime with NumPy in front and behind, as its
tutorials have it; OpenVINO by its first pages (which run fp32 graphs in bf16 where the CPU can), on
the graph and on what NNCF makes of it by its documentation (the calibration images are ours);
OpenVINO with all that its documentation offers.

Three stages, all by default. `--build` exports and quantises. `--score` runs every pipeline on the
validation split: mIoU, and the share of pixels that decide as eager PyTorch does. `--time` measures
one interleaved run per case, each pipeline in its own process: for an idle machine. A stage keeps
what the others have written in benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from benchmarks.int8_accuracy import BASE, Case, quantize_by_nncf
from benchmarks.pipelines import Options, Race
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import UnsupportedTargetError
from segdeploy.core.files import write_json
from segdeploy.core.folder import installed_versions, load_checkpoint
from segdeploy.core.preprocess import fit_image, restore_labels
from segdeploy.core.results import read_result
from segdeploy.core.scores import mean_iou
from segdeploy.data import Sample, open_dataset
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.metrics import ConfusionMatrix

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers.json"
RUN = Path("runs/peers")
TRAINED = {
    "lraspp": "lraspp_mobilenet_v3_large",
    "deeplabv3": "deeplabv3_mobilenet_v3_large",
    "unet": "unet",
}
SMP, SMP_SIZE, NUM_SMP_IMAGES = "smp", (352, 480), 10
FP32 = ("openvino-fp32", "onnx-fp32")
OURS = ("openvino-int8", "openvino-bf16", "onnx-int8", *FP32)
EAGER = "PyTorch eager"
_PACKAGES = (
    "torch", "onnxruntime", "openvino", "nncf", "segmentation_models_pytorch", "numpy", "segdeploy",
)  # fmt: skip
Entries = dict[str, tuple[str, Options]]


def trained_case(name: str, data: str) -> Case:
    """Return the case of a checkpoint of this repository."""
    checkpoint = HERE / "checkpoints" / f"{TRAINED[name]}-camvid"
    size = load_checkpoint(checkpoint).manifest.design_size
    if size is None:
        raise SystemExit(f"{checkpoint} does not say its design size")
    return Case(TRAINED[name], data, checkpoint, size, RUN / name)


def smp_case(data: str) -> Case:
    """Return the case of a model of segmentation-models-pytorch, imported if it is not there."""
    checkpoint = RUN / SMP / "checkpoint"
    if not (checkpoint / "manifest.json").is_file():
        from segdeploy.zoo.importing import import_weights

        weights = RUN / SMP / "smp.pth"
        weights.parent.mkdir(parents=True, exist_ok=True)
        _save_smp_model(weights)
        import_weights(weights, model="unet_resnet34", out=checkpoint, force=True)
    return Case("unet_resnet34", data, checkpoint, SMP_SIZE, RUN / SMP)


def _smp_model() -> Any:
    import torch

    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    import segmentation_models_pytorch

    torch.manual_seed(0)
    return segmentation_models_pytorch.Unet("resnet34", encoder_weights=None, classes=11).eval()


def _save_smp_model(path: Path) -> None:
    import torch

    torch.save(_smp_model().state_dict(), path)


def export_as_the_notebook(path: Path) -> Path:
    """Export the SMP model as SMP's `examples/convert_to_onnx.ipynb` does.

    It was written for the exporter that is no longer torch's default.
    """
    import torch

    if not path.exists():
        axes = {0: "batch_size", 2: "height", 3: "width"}
        torch.onnx.export(
            _smp_model(), (torch.randn(1, 3, 224, 224),), str(path), export_params=True,
            opset_version=17, do_constant_folding=True, input_names=["input"],
            output_names=["output"], dynamic_axes={"input": axes, "output": axes}, dynamo=False,
        )  # fmt: skip
    return path


def build(name: str, case: Case) -> Entries:
    """Export what the pipelines need, or reuse it; return them by the name in the table."""
    graph = str(case.artifact(BASE).payload)
    module = {"checkpoint": str(case.checkpoint)}
    entries: Entries = {
        EAGER: ("plain_pytorch", {**module, "compile": False}),
        "PyTorch compile": ("plain_pytorch", {**module, "compile": True}),
    }
    if name == SMP:
        notebook = str(export_as_the_notebook(case.run / "notebook.onnx"))
        entries["SMP notebook: ONNX Runtime"] = ("tutorial_onnxruntime", {"path": notebook})
    else:
        quantized = str(quantize_by_nncf(case))
        entries |= {
            "ONNX Runtime, tutorial": ("tutorial_onnxruntime", {"path": graph}),
            "OpenVINO, first pages": ("plain_openvino", {"path": graph}),
            "OpenVINO + NNCF int8, documentation": ("plain_openvino", {"path": quantized}),
            "OpenVINO bf16, expert": ("expert_openvino", {"path": graph, "hint": "bf16"}),
            "OpenVINO + NNCF int8, expert": (
                "expert_openvino", {"path": quantized, "hint": "f32"},
            ),
        }  # fmt: skip
    for target, path in export_ours(case, FP32 if name == SMP else OURS).items():
        entries[f"segdeploy {target}"] = ("segdeploy", {"path": str(path)})
    return entries


def export_ours(case: Case, targets: tuple[str, ...]) -> dict[str, Path]:
    """Export from image to low-resolution logits, or to labels where a model has none."""
    for output in (OutputKind.LOW_LOGITS, OutputKind.LABELS):
        with suppress(UnsupportedTargetError):
            outcomes = export(
                case.checkpoint, list(targets), case.run, size=case.size, calibration=case.data,
                io=IoContract(InputKind.IMAGE, output),
            )  # fmt: skip
            return {each.target: each.path for each in outcomes if each.requested}
    raise SystemExit(f"{case.checkpoint} can be exported neither way")


def samples(name: str, case: Case) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """Yield validation samples, each with its image at the model's size."""
    found = open_dataset(case.data, "val")
    preprocess = case.artifact(BASE).manifest.preprocess
    places = range(len(found))
    if name == SMP:
        places = range(0, len(found), len(found) // NUM_SMP_IMAGES)
    for index in places:
        sample = found[index]
        image = fit_image(sample.image, preprocess)
        if image.shape[:2] != case.size:
            image = np.asarray(Image.fromarray(image).resize(case.size[::-1]))
        yield sample, image


def score(name: str, case: Case) -> dict[str, Any]:
    """Return mIoU and agreement with eager PyTorch of each pipeline, with one thread each."""
    entries = build(name, case)
    manifest = case.artifact(BASE).manifest
    counts = {each: ConfusionMatrix(len(manifest.classes)) for each in entries}
    same: dict[str, list[float]] = {each: [] for each in entries}
    with Race(entries, threads=1) as race:
        for sample, image in track(list(samples(name, case)), f"{name}: score"):
            found = race.bind(image)
            size = (sample.image.shape[0], sample.image.shape[1])
            for each, labels in found.items():
                same[each].append(float((labels == found[EAGER]).mean()))
                if name != SMP:
                    restored = restore_labels(labels, size, manifest.preprocess)
                    counts[each].update(sample.label, restored)
    return {
        each: {
            "agreement": float(np.mean(same[each])),
            "mean_iou": None if name == SMP else float(mean_iou(counts[each].counts)),
            "num_images": len(same[each]),
        }
        for each in entries
    }


def time(name: str, case: Case, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the latencies of one interleaved run."""
    _, image = next(samples(name, case))
    with Race(build(name, case), threads) as race:
        race.bind(image)
        measured = race.run(rounds=rounds, seconds=seconds)
    return {
        each: {
            "p50_ms": float(np.median(found["samples_ms"])),
            "p90_ms": float(np.percentile(found["samples_ms"], 90)),
            "min_ms": float(np.min(found["samples_ms"])),
            "num_samples": len(found["samples_ms"]),
            "peak_memory_mib": found["peak_memory_mib"],
        }
        for each, found in measured.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=[*TRAINED, SMP])
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    for stage, said in (("build", "export"), ("score", "count"), ("time", "measure")):
        parser.add_argument(f"--{stage}", action="store_true", help=f"{said} only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one block")
    options = parser.parse_args()
    every = not (options.build or options.score or options.time)
    found = read_result(RESULTS) or {}
    for name in options.case or [*TRAINED, SMP]:
        case = smp_case(options.data) if name == SMP else trained_case(name, options.data)
        stages: dict[str, Callable[[], Any]] = {}
        if options.score or every:
            stages["scores"] = partial(score, name, case)
        if options.time or every:
            stages["times"] = partial(
                time, name, case, options.threads, options.rounds, options.seconds
            )
        build(name, case)
        for stage, run in stages.items():
            entry = found.setdefault(name, {})
            entry |= {"model": case.model, "size": case.size}
            entry[stage] = run()
            if stage == "times":
                entry["threads"] = options.threads
                entry["environment"] = describe_environment()
                entry["versions"] = installed_versions(_PACKAGES)
            write_json(RESULTS, found)
            for each, row in entry[stage].items():
                print(f"{name:10} {each:38} {row}")


if __name__ == "__main__":
    main()
