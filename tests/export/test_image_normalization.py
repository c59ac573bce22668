"""An artifact that takes images: its first convolution holds the normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from segdeploy.backends import open_session
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import normalize_image
from segdeploy.export import export

DATA = "synthetic:48x64:8"
TARGETS = ["onnx-fp32", "onnx-fp16", "onnx-int8"]


@pytest.fixture(scope="module")
def run(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image-input")
    for io in (IoContract(), IoContract(InputKind.IMAGE)):
        export(checkpoint.path, TARGETS, out, calibration=DATA, num_calibration_images=4, io=io)
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_one_subtraction_is_left_before_the_first_convolution(run: Path, target: str) -> None:
    made = load_artifact(run / f"{target}+image")
    kinds = [n.op_type for n in onnx.load(str(made.payload)).graph.node]
    before = kinds[: kinds.index("Conv")]
    assert before[:3] == ["Cast", "Transpose", "Sub"]
    assert not {"Mul", "Div", "Gather"} & set(before)
    option = made.manifest.options["normalization"]
    assert option["folded"] is True
    assert option["subtracts"] == pytest.approx([123.675, 116.28, 103.53])
    assert "normalization" not in load_artifact(run / target).manifest.options


@pytest.mark.parametrize(
    ("target", "noise"), [("onnx-fp32", 1e-5), ("onnx-fp16", 5e-3), ("onnx-int8", 0.1)]
)
def test_logits_are_those_of_the_tensor_contract(
    run: Path, checkpoint: Checkpoint, target: str, noise: float
) -> None:
    """Within what the precision rounds anyway: ranges and weights are chosen anew for pixels."""
    image = np.random.default_rng(0).integers(0, 256, (51, 66, 3), dtype=np.uint8)
    batch = normalize_image(image, checkpoint.manifest.preprocess)[None]
    wanted = open_session(load_artifact(run / "onnx-fp32")).run(batch)["logits"]
    found = open_session(load_artifact(run / f"{target}+image")).run(image[None])["logits"]
    error = float(np.sqrt(np.mean((found - wanted) ** 2)))
    assert error <= noise * float(wanted.std())
