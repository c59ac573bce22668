"""Everything that is claimed of the named models, measured: the rows of docs/zoo.md.

    .venv/bin/python benchmarks/zoo_table.py [NAME ...] [--again] [--part build|export|train]

For each model, each part in a process of its own: parameters against the published count,
multiply-adds, logits against the reference library with the same weights, time and memory of
`create_model`; ONNX with dynamic sizes and TorchScript against eager PyTorch; twenty steps of
training in fp32 and bf16. Writes benchmarks/results/zoo.json after every part; what is there is
not measured again unless `--again`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import track

from segdeploy.core.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo.json"
REFERENCES = HERE / "zoo_reference.toml"
CLASSES = 21
SHAPES = ((1, 64, 64), (1, 97, 130), (1, 225, 231), (1, 320, 256), (3, 97, 130))
PARTS = ("build", "export", "train")
LIMIT_S = 1800
SMP_CLASSES = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3_smp": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}


def build_part(name: str) -> dict[str, Any]:
    """Cost of `create_model`, published counts, and equality with the reference library."""
    import resource

    import torch

    from segdeploy.zoo import MODELS, create_model
    from segdeploy.zoo.checkpoint import num_parameters

    create_model("lraspp_mobilenet_v3_small", CLASSES)  # Imports count for no model.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    module = create_model(name, CLASSES)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = MODELS.get(name)
    published = [
        {"system": row["system"], "num_classes": row["num_classes"], "published": count,
         "ours": num_parameters(create_model(name, row["num_classes"]))}
        for row in tomllib.loads(REFERENCES.read_text(encoding="utf-8"))["row"]
        if row["model"] == name and (count := row["num_parameters"])
    ]  # fmt: skip
    del module
    torch.manual_seed(0)
    return {
        "family": spec.family,
        "published": published,
        "create_seconds": seconds,
        "create_mib": (peak - before) / 1024,
        "reference": compare_with_library(name),
    }


def compare_with_library(name: str) -> dict[str, Any] | None:
    """Largest relative deviation of our logits from the library's; None where there is none."""
    import torch

    from segdeploy.zoo import MODELS, create_model, main_logits

    reference = create_reference(name, CLASSES)
    if reference is None:
        return None
    settle(reference.module, reference.size if MODELS.get(name).is_fixed_size else (128, 128))
    ours = create_model(name, CLASSES)
    ours.load_state_dict(reference.module.state_dict())
    image = structured_batch(1, *reference.size)
    with torch.inference_mode():
        wanted = main_logits(reference.module.eval()(image))
        found = main_logits(ours.eval()(image))
    error = float((found - wanted).abs().max() / wanted.abs().max())
    return {"library": reference.library, "max_relative": error, "size": list(reference.size)}


@dataclass(frozen=True)
class Reference:
    """A reference net, its library, and an input size (H, W) that it takes."""

    module: Any
    library: str
    size: tuple[int, int]


def create_reference(name: str, num_classes: int) -> Reference | None:
    """Return the library's net of this name with fresh weights; None where no library has it."""
    from segdeploy.frameworks.torchvision import prepare_torchvision
    from segdeploy.zoo import MODELS

    prepare_torchvision()
    spec = MODELS.get(name)
    if spec.family == "torchvision":
        return _torchvision(name, num_classes)
    if spec.family == "segmentation-models-pytorch" and spec.encoder:
        architecture = name.removesuffix("_" + spec.encoder)
        return _smp(architecture, spec.encoder, num_classes, spec.is_fixed_size)
    return None


def _torchvision(name: str, num_classes: int) -> Reference | None:
    from torchvision.models import segmentation

    create = getattr(segmentation, name, None)
    if create is None:
        return None
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    module = create(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    return Reference(module, "torchvision", (97, 130))


def _smp(architecture: str, encoder: str, num_classes: int, is_fixed: bool) -> Reference | None:
    import segmentation_models_pytorch as smp

    options = {}
    if architecture == "unet_scse":
        architecture, options = "unet", {"decoder_attention_type": "scse"}
    if encoder.startswith("efficientnet"):
        return None  # Theirs is another implementation, with other padding and keys.
    theirs = encoder.replace("timm/", "tu-")
    create = getattr(smp, SMP_CLASSES[architecture])
    module = create(theirs, encoder_weights=None, classes=num_classes, **options)
    return Reference(module, "segmentation-models-pytorch", (224, 224) if is_fixed else (256, 224))


def export_part(name: str) -> dict[str, Any]:
    """ONNX (dynamic sizes) and TorchScript (traced) against eager at sizes not exported at."""
    import onnxruntime
    import torch

    from segdeploy.backends.onnx_export import export_checkpoint
    from segdeploy.core.preprocess import PreprocessSpec
    from segdeploy.core.task import Task
    from segdeploy.frameworks.torchscript import trace_module
    from segdeploy.zoo import MODELS, create_model, main_logits, save_checkpoint
    from segdeploy.zoo.checkpoint import load_module

    torch.manual_seed(0)
    spec = MODELS.get(name)
    module = settle(create_model(name, CLASSES)).eval()
    fixed = spec.input_size if spec.is_fixed_size else None
    shapes = SHAPES if fixed is None else ((1, *fixed), (3, *fixed))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(
            Path(folder) / "checkpoint", module, model=name, task=Task.MULTICLASS,
            classes=[f"class_{i}" for i in range(CLASSES)], preprocess=PreprocessSpec(),
            trained=False,
        )  # fmt: skip
        started = time.perf_counter()
        graph = export_checkpoint(checkpoint, fixed).SerializeToString()
        seconds = time.perf_counter() - started
        module = load_module(checkpoint)

    class MainLogits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = main_logits(self.module(x))
            return logits

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    script: Any = None
    script_error = None
    try:
        script = trace_module(MainLogits(), torch.zeros(2, 3, *(fixed or (96, 128))))
    except Exception as error:  # noqa: BLE001  The table says why not.
        script_error = f"{type(error).__name__}: {error}"[:300]
    rows = []
    for shape in shapes:
        batch = structured_batch(*shape)
        with torch.inference_mode():
            wanted = main_logits(module(batch))
            traced = None if script is None else script(batch)
        onnx = torch.from_numpy(session.run(None, {"tensor": batch.numpy()})[0])
        script_row = None if traced is None else compare(traced, wanted)
        row = {"shape": list(shape), "onnx": compare(onnx, wanted), "torchscript": script_row}
        rows.append(row)
    return {
        "is_dynamic": fixed is None,
        "noise_floor": noise_floor(module, shapes[-1]),
        "export_seconds": seconds,
        "onnx_mib": len(graph) / 2**20,
        "rows": rows,
        "torchscript_error": script_error,
    }


def noise_floor(module: Any, shape: tuple[int, int, int]) -> float:
    """Largest relative deviation of eager fp32 from the same module in fp64: its own rounding."""
    import torch

    from segdeploy.zoo import main_logits

    batch = structured_batch(*shape)
    with torch.inference_mode():
        single = main_logits(module(batch))
        double = main_logits(module.double()(batch.double()))
    return compare(single, double)["max_relative"]


def compare(found: Any, wanted: Any) -> dict[str, float]:
    """Largest deviation relative to the largest logit, and the share of pixels that flip."""
    deviation = float((found - wanted).abs().max() / wanted.abs().max())
    flips = float((found.argmax(1) != wanted.argmax(1)).double().mean())
    return {"max_relative": deviation, "flip_rate": flips}


def train_part(name: str) -> dict[str, Any]:
    """Loss of the first and the last five of twenty steps, in fp32 and under bf16 autocast."""
    from segdeploy.train import TrainConfig, train

    found: dict[str, Any] = {}
    precisions: tuple[Literal["none", "bf16"], ...] = ("none", "bf16")
    for amp in precisions:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            out = Path(folder) / "run"
            started = time.perf_counter()
            train(TrainConfig(
                model=name, data="synthetic:64x64:20", out=str(out), epochs=4, batch_size=4,
                scale=(1.0, 1.0), jitter=0.0, lr=1e-3, warmup_steps=5, amp=amp,
                workers=0, val_every=4, val_limit=1, device="cpu",
            ))  # fmt: skip
            lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [json.loads(line)["loss"] for line in lines]
            seconds = time.perf_counter() - started
            found[amp] = {"losses": losses, "seconds": seconds, "falls": losses[-1] < losses[0]}
    return found


def settle(module: Any, size: tuple[int, int] = (128, 128)) -> Any:
    """Give fresh weights sane, random batch statistics: those of a few structured images."""
    import torch
    from torch import nn

    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # A plain average.
    module.train()
    with torch.no_grad():
        module(structured_batch(4, *size))
    for norm in norms:
        norm.momentum = 0.1
    return module.eval()


def structured_batch(num: int, height: int, width: int) -> Any:
    """Preprocessed scenes of the synthetic data set, float32 (N, 3, H, W)."""
    import numpy as np
    import torch

    from segdeploy.core.preprocess import PreprocessSpec, normalize_image
    from segdeploy.data.synthetic import SyntheticDataset

    scenes = SyntheticDataset("val", (height, width), 4 * num)
    images = [normalize_image(scenes[i].image, PreprocessSpec()) for i in range(num)]
    return torch.from_numpy(np.stack(images)).contiguous()


def run_part(name: str, part: str) -> dict[str, Any]:
    """Return what the child process found; a crash or a timeout is a row as well."""
    command = [sys.executable, __file__, name, "--part", part, "--child"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {LIMIT_S} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr else "killed"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_table() -> dict[str, Any]:
    """Return what was measured so far: model -> part -> figures."""
    if not RESULTS.is_file():
        return {}
    table: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    if given.child:
        found = {"build": build_part, "export": export_part, "train": train_part}[given.part[0]](
            given.names[0]
        )
        print(json.dumps(found))
        return
    from segdeploy.zoo import MODELS

    table = read_table()
    todo = [
        (name, part)
        for part in given.part or PARTS
        for name in given.names or MODELS.names()
        if given.again or "error" in table.get(name, {}).get(part, {"error": ""})
    ]
    for name, part in track(todo, "measuring"):
        found = run_part(name, part)
        table = read_table()  # Another run may measure other models.
        table.setdefault(name, {})[part] = found
        write_json(RESULTS, dict(sorted(table.items())))
        print(name, part, table[name][part].get("error", "done"), flush=True)


if __name__ == "__main__":
    main()
