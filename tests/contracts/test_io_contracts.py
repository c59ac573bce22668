"""`image` in and `labels` out of every backend that offers them: the reference composition.

A photo through `predict` of the artifact gives the label map of `predict` of the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdeploy.backends import BACKENDS, open_session, require_backend
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.task import Task, decision_margin, predict_labels
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.predict import predict_files
from segdeploy.verify import verify
from segdeploy.zoo import create_model, main_logits, save_checkpoint

IMAGE_LABELS = IoContract(InputKind.IMAGE, OutputKind.LABELS)
QUICK = {"onnx", "torchscript", "openvino", "ncnn"}
SIZE = (64, 96)
CLOSE_CALL = 1e-3  # Of the logits' spread: pixels that fp32 runtimes may decide either way.


def _backends() -> list[object]:
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BACKENDS
    ]


def _build(name: str, checkpoint: Checkpoint, run: Path) -> Artifact:
    """The artifact of one backend at its finest precision, with both ends inside."""
    backend = BACKENDS.get(name)
    offered = IMAGE_LABELS.input in backend.limits.inputs
    if not (offered and IMAGE_LABELS.output in backend.limits.outputs):
        pytest.skip(f"{name} cannot express image in and labels out")
    try:
        require_backend(backend)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    target = f"{name}-{backend.precisions[0]}"
    made = export(checkpoint.path, [target], run, io=IMAGE_LABELS, size=SIZE)[0]
    artifact = load_artifact(made.path)
    try:
        open_session(artifact).close()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    return artifact


@pytest.mark.parametrize("name", _backends())
def test_image_in_and_labels_out_are_the_reference_composition(
    name: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    artifact = _build(name, tiny_checkpoint, tmp_path / "run")
    assert verify(artifact.path, against=tiny_checkpoint.path).passed
    session, eager = open_session(artifact), open_session(tiny_checkpoint)
    spec = tiny_checkpoint.manifest.preprocess
    images = open_dataset("synthetic:64x96:16", "val")
    for index in range(2):
        image = images[index].image
        labels = session.run(image[None])["labels"]
        logits = eager.run(normalize_image(image, spec)[None])["logits"]
        wanted = predict_labels(logits, Task.MULTICLASS)
        assert labels.dtype == wanted.dtype == np.uint8
        assert labels.shape == wanted.shape
        clear = decision_margin(logits, Task.MULTICLASS) > CLOSE_CALL * logits.std()
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(labels[clear], wanted[clear])
    session.close()


@pytest.mark.parametrize("name", _backends())
def test_a_photo_gives_the_label_map_of_the_checkpoint(
    name: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    artifact = _build(name, tiny_checkpoint, tmp_path / "run")
    scene = open_dataset("synthetic:64x96:16", "val")[1].image
    Image.fromarray(scene).save(tmp_path / "photo.jpg", quality=90)
    maps = []
    for folder in (tiny_checkpoint.path, artifact.path):
        out = tmp_path / f"out-{folder.name}"
        predict_files(folder, [tmp_path / "photo.jpg"], out)
        maps.append(np.asarray(Image.open(out / "photo.png")))
    assert maps[0].shape == SIZE
    assert (maps[0] != maps[1]).mean() < 1e-3


@pytest.mark.parametrize("name", _backends())
def test_three_hundred_classes_come_as_uint16(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = create_model("lraspp_mobilenet_v3_small", 300)
    with torch.no_grad():
        for values in module.parameters():
            if len(values) == 300:  # Of the last layers: the classes that win become high ones.
                values.copy_(values.roll(90, 0))
    checkpoint = save_checkpoint(
        tmp_path / "checkpoint", module,
        model="lraspp_mobilenet_v3_small", task=Task.MULTICLASS,
        classes=[f"c{k}" for k in range(300)], preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    artifact = _build(name, checkpoint, tmp_path / "run")
    image = open_dataset("synthetic:64x96:16", "val")[0].image
    session = open_session(artifact)
    labels = session.run(image[None])["labels"]
    session.close()
    logits = open_session(checkpoint).run(normalize_image(image, PreprocessSpec())[None])["logits"]
    wanted = predict_labels(logits, Task.MULTICLASS)
    assert labels.dtype == np.uint16
    assert wanted.max() > 255, "the test needs a class that uint8 cannot name"
    assert (labels != wanted).mean() < 0.01


@pytest.mark.parametrize("name", _backends())
def test_a_binary_model_gives_a_mask(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = create_model("lraspp_mobilenet_v3_small", 1).eval()
    image = open_dataset("synthetic:64x96:16", "val")[0].image
    tensor = torch.from_numpy(normalize_image(image, PreprocessSpec())[None])
    with torch.no_grad():
        bias = next(v for v in reversed(list(module.parameters())) if v.shape == (1,))
        bias.sub_(main_logits(module(tensor)).median())  # Both answers occur.
    checkpoint = save_checkpoint(
        tmp_path / "checkpoint", module,
        model="lraspp_mobilenet_v3_small", task=Task.BINARY, classes=("yes",),
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    session = open_session(_build(name, checkpoint, tmp_path / "run"))
    labels = session.run(image[None])["labels"]
    session.close()
    logits = open_session(checkpoint).run(normalize_image(image, PreprocessSpec())[None])["logits"]
    wanted = predict_labels(logits, Task.BINARY)
    assert labels.dtype == np.uint8
    assert 0 < wanted.mean() < 1
    assert (labels != wanted).mean() < 1e-3
