"""Low-resolution logits out of every backend, and what every stage makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import segdeploy
from segdeploy.backends import BACKENDS, open_session, require_backend
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import normalize_image
from segdeploy.core.task import Task, decision_margin
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.upsampling import reference_labels
from segdeploy.verify import verify

SIZE = (64, 96)
QUICK = {"onnx", "torchscript", "openvino", "ncnn"}
CLOSE_CALL = 1e-3  # Of the logits' spread: pixels that fp32 runtimes may decide either way.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder: the plain graph is exported once."""
    return tmp_path_factory.mktemp("low") / "run"


def _build(name: str, checkpoint: Checkpoint, run: Path) -> Artifact:
    backend = BACKENDS.get(name)
    try:
        require_backend(backend)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    taken = InputKind.IMAGE if InputKind.IMAGE in backend.limits.inputs else InputKind.TENSOR
    io = IoContract(taken, OutputKind.LOW_LOGITS)
    target = f"{name}-{backend.precisions[0]}"
    artifact = load_artifact(export(checkpoint.path, [target], run, io=io, size=SIZE)[0].path)
    try:
        open_session(artifact).close()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    return artifact


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BACKENDS]
)
def test_low_logits_are_decided_as_the_logits_of_the_checkpoint(
    name: str, undecided_checkpoint: Checkpoint, run: Path
) -> None:
    artifact = _build(name, undecided_checkpoint, run)
    manifest = artifact.manifest
    assert [(spec.name, spec.shape[1:]) for spec in manifest.outputs] == [
        ("low_logits", (5, 8, 12))
    ]
    assert verify(artifact.path, against=undecided_checkpoint.path).passed
    image = open_dataset("synthetic:64x96:16", "val")[0].image
    session, eager = open_session(artifact), open_session(undecided_checkpoint)
    is_image = manifest.io.input is InputKind.IMAGE
    item = image if is_image else normalize_image(image, manifest.preprocess)
    found = session.run(item[None])
    session.close()
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        "low_logits": ("float32", (1, 5, 8, 12))
    }
    expected = reference_labels(
        found["low_logits"], SIZE, align_corners=False, task=Task.MULTICLASS
    )[0]
    with segdeploy.open(artifact.path) as predictor:
        np.testing.assert_array_equal(predictor.predict(image).labels, expected)
        np.testing.assert_array_equal(predictor.bind(image)(), expected)
    logits = eager.run(normalize_image(image, manifest.preprocess)[None])["logits"]
    clear = decision_margin(logits, Task.MULTICLASS)[0] > CLOSE_CALL * logits.std()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(expected[clear], logits.argmax(axis=1)[0][clear])


def test_the_manifest_says_how_and_older_identities_stay(
    undecided_checkpoint: Checkpoint, run: Path
) -> None:
    io = IoContract(output=OutputKind.LOW_LOGITS)
    made, plain = export(undecided_checkpoint.path, ["onnx-fp32"], run, io=io, size=SIZE)
    manifest = load_artifact(made.path).manifest
    said = manifest.upsampling
    assert said is not None
    assert (said.mode, said.align_corners, said.margin) == ("bilinear", False, 16)
    assert "2^-103" in said.rule
    other = load_artifact(plain.path).manifest
    assert other.upsampling is None
    assert other.digest == _digest_before(other)


@pytest.mark.slow
def test_dynamic_sizes(undecided_checkpoint: Checkpoint, run: Path) -> None:
    io = IoContract(InputKind.IMAGE, OutputKind.LOW_LOGITS)
    for made in export(undecided_checkpoint.path, ["onnx-fp32", "openvino-fp32"], run, io=io)[:2]:
        assert load_artifact(made.path).manifest.outputs[0].shape == (None, 5, None, None)
        report = verify(made.path, against=undecided_checkpoint.path)
        assert report.passed
        assert len(report.cases) == 3  # Odd sizes, and a batch of two.


def _digest_before(manifest: Manifest) -> str:
    """The identity as it was computed when manifests had no upsampling."""
    import msgspec

    from segdeploy.core.files import digest_of

    plain = msgspec.to_builtins(manifest)
    names = ("kind", "model", "task", "classes", "preprocess", "io", "target", "files")
    return digest_of({name: plain[name] for name in names})
