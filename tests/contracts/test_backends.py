"""Every backend, precision and model of the tables: builds, opens, runs any size, agrees.

The default part takes the lightest model; the others are marked slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from segdeploy.backends import BACKENDS, open_session
from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.target import Precision
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.graph.proto import load_graph
from segdeploy.zoo import MODELS, create_model, save_checkpoint

DATA = "synthetic:96x128"
LIGHT = "unet"
SIZES = [(1, 96, 128), (2, 104, 120), (1, 97, 131), (3, 33, 65)]
# Root mean square difference as a share of the logits' spread, on untrained weights.
CLOSE = {Precision.FP32: 1e-4, Precision.FP16: 0.02, Precision.BF16: 0.1, Precision.INT8: 0.25}


def _save(path: Path, name: str) -> Checkpoint:
    """A checkpoint with batch norms that are not the identity."""
    torch.manual_seed(0)
    module = create_model(name, 5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    saved: Checkpoint = save_checkpoint(
        path, module, model=name, task=Task.MULTICLASS, classes=tuple("abcde"),
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return saved


def _targets() -> list[str]:
    return [
        f"{name}-{precision}" for name in BACKENDS for precision in BACKENDS.get(name).precisions
    ]


def _batches() -> list[np.ndarray]:
    dataset = open_dataset(DATA, "val")
    found = []
    for index, (num, height, width) in enumerate(SIZES):
        image = np.tile(dataset[index].image, (2, 2, 1))[:height, :width]
        found.append(np.stack([normalize_image(image, PreprocessSpec())] * num))
    return found


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=() if m == LIGHT else pytest.mark.slow) for m in MODELS],
)
def test_every_target_of_a_model_agrees_with_eager_at_every_size(
    model: str, tmp_path: Path
) -> None:
    checkpoint = _save(tmp_path / "checkpoint", model)
    for name in BACKENDS:
        try:
            BACKENDS.get(name).require()
        except BackendUnavailableError as error:
            pytest.skip(str(error))
    outcomes = export(
        checkpoint.path, _targets(), tmp_path, calibration=DATA, num_calibration_images=4
    )
    reference = open_session(checkpoint)
    wanted = [reference.run(batch)["logits"] for batch in _batches()]
    for outcome in outcomes:
        artifact = load_artifact(outcome.path)
        session = open_session(artifact)
        assert session.inputs == artifact.manifest.inputs
        precision = Precision(outcome.target.rpartition("-")[2])
        for batch, exact in zip(_batches(), wanted, strict=True):
            found = session.run(batch)["logits"]
            assert found.shape == exact.shape
            distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
            assert distance < CLOSE[precision], (outcome.target, batch.shape)
        session.close()
    _assert_int8_is_legal_for_tensorrt(tmp_path / "onnx-int8" / "model.onnx")


def _assert_int8_is_legal_for_tensorrt(path: Path) -> None:
    model = load_graph(path)
    stored = {t.name: t for t in model.graph.initializer}
    assert not {t.data_type for t in stored.values()} & {TensorProto.UINT8, TensorProto.INT32}
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        zero = numpy_helper.to_array(stored[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_backend_says_what_it_is(name: str) -> None:
    backend = BACKENDS.get(name)
    assert backend.name == name
    assert backend.source in {"checkpoint", "onnx"}
    assert backend.precisions
    assert "/" not in backend.payload_name
