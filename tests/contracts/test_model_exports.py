"""Every named model as dynamic ONNX and as TorchScript, at sizes it was not exported at.

The bound is the model's own rounding: the deviation of eager fp32 from fp64 on the same input. All
models are slow (choose them by name); a few that hold the difficult parts run by default: pooling
to fixed bins, rounding-up pools, codewords, three poolings in a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from segdeploy.backends.onnx_export import export_checkpoint
from segdeploy.core.folder import Checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.frameworks.torchscript import trace_module
from segdeploy.zoo import MODELS, create_model, load_module, main_logits, save_checkpoint

CLASSES = tuple(f"class_{i}" for i in range(5))
SHAPES = ((1, 64, 64), (1, 97, 130), (1, 225, 231), (1, 320, 256), (3, 97, 130))
QUICK = ("pspnet_resnet18", "u2net_lite", "encnet_resnet18", "pan_resnet18")
MOST_NOISE = 30  # Times the rounding of eager fp32; runtimes fold batch norms, which rounds anew.
LEAST_NOISE = 1e-6  # Of the largest logit: a shallow net's rounding may be nearly nothing.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


class MainLogits(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = main_logits(self.module(x))
        return logits


def _checkpoint(name: str, folder: Path) -> Checkpoint:
    torch.manual_seed(0)
    module = create_model(name, len(CLASSES))
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        module.train()(torch.rand(4, 3, 96, 96) * 4 - 2)  # Sane statistics: logits stay moderate.
    checkpoint: Checkpoint = save_checkpoint(
        folder / "checkpoint", module, model=name, task=Task.MULTICLASS, classes=CLASSES,
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return checkpoint


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_exported_forms_agree_with_eager_at_any_size(name: str, tmp_path: Path) -> None:
    spec = MODELS.get(name)
    fixed = spec.input_size if spec.is_fixed_size else None
    checkpoint = _checkpoint(name, tmp_path)
    module = load_module(checkpoint)
    graph = export_checkpoint(checkpoint, fixed)
    assert {node.domain for node in graph.graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    script: Any = trace_module(MainLogits(module), torch.zeros(2, 3, *(fixed or (96, 128))))
    double = load_module(checkpoint).double()
    for shape in SHAPES if fixed is None else ((1, *fixed), (3, *fixed)):
        batch = torch.rand(shape[0], 3, *shape[1:]) * 4 - 2
        with torch.inference_mode():
            wanted = main_logits(module(batch))
            exact = main_logits(double(batch.double()))
            traced = script(batch)
        onnx = torch.from_numpy(session.run(None, {"tensor": batch.numpy()})[0])
        noise = float((wanted - exact).abs().max() / exact.abs().max())
        for found in (onnx, traced):
            deviation = float((found - wanted).abs().max() / wanted.abs().max())
            assert deviation <= MOST_NOISE * max(noise, LEAST_NOISE), shape
