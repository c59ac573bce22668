"""Engines and ONNX Runtime's GPU providers on a GPU: the numbers, not only the calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segdeploy.backends import open_session
from segdeploy.backends.tensorrt import TENSORRT
from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import BackendUnavailableError, DataError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.session import Array
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.frameworks.cuda import require_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]
RANGE = SizeBounds((64, 64), (64, 96), (128, 128))
DATA = "synthetic:64x96:16"
CLOSE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.25}  # RMS as a share of the logits' spread.


@pytest.fixture(autouse=True)
def _gpu() -> None:
    try:
        TENSORRT.require()
        require_gpu(0, "This test")
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def _images(num: int, height: int, width: int) -> Array:
    image = np.tile(open_dataset(DATA, "val")[0].image, (2, 2, 1))[:height, :width]
    return np.stack([image] * num)


@pytest.mark.parametrize("precision", list(CLOSE))
def test_engines_agree_with_eager_over_their_range(
    tiny_checkpoint: Checkpoint, tmp_path: Path, precision: str
) -> None:
    made = export(
        tiny_checkpoint.path, [f"tensorrt-{precision}"], tmp_path, size=RANGE, max_batch=2,
        calibration=DATA, num_calibration_images=4,
    )  # fmt: skip
    session = open_session(load_artifact(made[0].path), "cuda")
    reference = open_session(tiny_checkpoint)
    for num, height, width in ((1, 64, 96), (2, 128, 128), (1, 64, 64), (2, 97, 65)):
        batch = np.stack(
            [normalize_image(image, PreprocessSpec()) for image in _images(num, height, width)]
        )
        exact, found = reference.run(batch)["logits"], session.run(batch)["logits"]
        assert found.shape == exact.shape
        assert found.dtype == np.float32
        distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
        assert distance < CLOSE[precision]
        session.bind(batch)()
    with pytest.raises(DataError, match="The engine takes"):
        session.run(np.zeros((1, 3, 129, 64), np.float32))
    session.close()


def test_an_image_gives_labels(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export(
        tiny_checkpoint.path, ["tensorrt-fp32"], tmp_path, size=(64, 96),
        io=IoContract(InputKind.IMAGE, OutputKind.LABELS),
    )  # fmt: skip
    session = open_session(load_artifact(made[0].path), "cuda")
    images = _images(1, 64, 96)
    batch = np.stack([normalize_image(image, PreprocessSpec()) for image in images])
    exact = open_session(tiny_checkpoint).run(batch)["logits"].argmax(1)
    found = session.run(images)["labels"]
    assert found.dtype == np.uint8
    assert np.mean(found != exact) < 1e-3


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.parametrize("precision", list(CLOSE))
def test_onnx_runtimes_gpu_providers_agree_with_eager(
    tiny_checkpoint: Checkpoint, tmp_path: Path, device: str, precision: str
) -> None:
    made = export(
        tiny_checkpoint.path, [f"onnx-{precision}"], tmp_path, calibration=DATA,
        num_calibration_images=4,
    )  # fmt: skip
    try:
        session = open_session(load_artifact(made[0].path), device)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    images = _images(2, 64, 96)
    batch = np.stack([normalize_image(image, PreprocessSpec()) for image in images])
    exact = open_session(tiny_checkpoint).run(batch)["logits"]
    found = session.run(batch)["logits"]
    assert float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std()) < CLOSE[precision]
    session.bind(batch)()
