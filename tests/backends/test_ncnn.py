"""ncnn nets: agree with eager in the precision they are named by, or are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segdeploy.backends import open_session
from segdeploy.backends.ncnn import NCNN, load_net
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    DataError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Artifact, Checkpoint
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.target import Precision
from segdeploy.data import open_dataset
from segdeploy.export import Size, export
from segdeploy.zoo import load_module

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

SmallNet = Callable[[Path, int], Checkpoint]
ODD = (49, 67)
TARGETS = ["ncnn-fp32", "ncnn-fp16"]


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


@pytest.fixture(scope="module")
def artifacts(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """Artifacts by target."""
    outcomes = export(checkpoint.path, TARGETS, tmp_path_factory.mktemp("run"), size=ODD)
    return {o.target: o.artifact for o in outcomes if o.artifact is not None}


def _batch() -> np.ndarray:
    image = open_dataset("synthetic:96x128:16", "val")[0].image[: ODD[0], : ODD[1]]
    return normalize_image(image, PreprocessSpec())[None]


def test_fp32_is_fp32(artifacts: dict[str, Artifact], checkpoint: Checkpoint) -> None:
    exact = open_session(checkpoint).run(_batch())["logits"]
    found = open_session(artifacts["ncnn-fp32"]).run(_batch())["logits"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=3e-5, rtol=0)


def test_fp16_is_the_net_with_fp16_weights(
    artifacts: dict[str, Artifact], checkpoint: Checkpoint
) -> None:
    """On a CPU without fp16 arithmetic nothing else is rounded, so nothing else may differ."""
    session = open_session(artifacts["ncnn-fp16"])
    exact = open_session(checkpoint).run(_batch())["logits"]
    found = session.run(_batch())["logits"]
    error = np.abs(found - exact).max() / exact.std()
    assert 1e-5 < error < 5e-3
    sizes = [artifacts[t].path.joinpath("model.ncnn.bin").stat().st_size for t in TARGETS]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_no_switch_is_left_to_a_default(
    artifacts: dict[str, Artifact], precision: Precision
) -> None:
    artifact = artifacts[f"ncnn-{precision}"]
    option = load_net(artifact.payload, artifact.path / "model.ncnn.bin", precision).opt
    is_half = precision is Precision.FP16
    assert option.use_fp16_packed is is_half
    assert option.use_fp16_storage is is_half
    assert option.use_fp16_arithmetic is is_half
    assert not option.use_bf16_storage
    assert not option.use_bf16_packed
    assert not option.use_vulkan_compute


def test_threads_are_those_of_the_environment(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDEPLOY_NUM_THREADS", "1")
    artifact = artifacts["ncnn-fp32"]
    weights = artifact.path / "model.ncnn.bin"
    assert load_net(artifact.payload, weights, Precision.FP32).opt.num_threads == 1


@pytest.mark.parametrize(
    ("io", "size", "says"),
    [
        (IoContract(InputKind.IMAGE), ODD, "--input image"),
        (IoContract(output=OutputKind.LABELS), ODD, "--output labels"),
        (IoContract(output=OutputKind.LABELS_CONFIDENCE), ODD, "--output labels"),
        (IoContract(), None, "one size"),
    ],
)
def test_what_the_format_has_not_is_refused_before_anything_is_built(
    checkpoint: Checkpoint, tmp_path: Path, io: IoContract, size: Size, says: str
) -> None:
    with pytest.raises(UnsupportedTargetError, match=says):
        export(checkpoint.path, ["ncnn-fp32"], tmp_path / "run", io=io, size=size)
    assert not (tmp_path / "run").exists()


def test_one_image_of_the_size_is_taken(artifacts: dict[str, Artifact]) -> None:
    session = open_session(artifacts["ncnn-fp32"])
    assert session.inputs[0].shape == (1, 3, *ODD)
    for batch in (np.repeat(_batch(), 2, 0), _batch()[:, :, :-1]):
        with pytest.raises(DataError):
            session.run(np.ascontiguousarray(batch))


def test_a_bound_call_runs_and_a_closed_session_refuses(artifacts: dict[str, Artifact]) -> None:
    session = open_session(artifacts["ncnn-fp32"])
    call = session.bind(_batch())
    call()
    first = session.run(_batch())["logits"]
    before = first.copy()
    session.run(np.zeros_like(_batch()))
    np.testing.assert_array_equal(first, before)
    session.close()
    for use in (call, lambda: session.run(_batch())):
        with pytest.raises(ArtifactError, match="closed"):
            use()


def test_what_is_damaged_or_not_there_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = artifacts["ncnn-fp32"]
    with pytest.raises(BackendUnavailableError, match="CPU"):
        open_session(artifact, "cuda")
    for name in artifact.manifest.files:
        shutil.copy(artifact.path / name, tmp_path / name)
    text = artifact.payload.read_text()
    for damaged in ("nonsense", text.replace("Convolution ", "Convulsion ", 1)):
        (tmp_path / artifact.payload.name).write_text(damaged)
        with pytest.raises(ArtifactError, match="cannot open"):
            NCNN.open(Artifact(tmp_path, artifact.manifest))
    (tmp_path / artifact.payload.name).write_text(text.replace(" out0", " out9"))
    with pytest.raises(ArtifactError, match="out0"):
        NCNN.open(Artifact(tmp_path, artifact.manifest))


def test_a_layer_that_pnnx_leaves_unconverted_is_a_build_error(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pnnx ends with 0 there, and writes a net with a layer that ncnn has not."""

    class Sorted(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.inner(x)
            return torch.sort(logits["out"] if isinstance(logits, dict) else logits, dim=1)[0]

    monkeypatch.setattr("segdeploy.zoo.load_module", lambda c: Sorted(load_module(c)).eval())
    with pytest.raises(BuildError, match=r"ncnn cannot run|pnnx ended") as caught:
        export(checkpoint.path, ["ncnn-fp32"], tmp_path, size=ODD)
    assert caught.value.log
    assert not list(tmp_path.glob("ncnn*"))


_AGAIN = """
import sys
from pathlib import Path
from segdeploy.export import export
export(Path(sys.argv[1]), ["ncnn-fp16"], Path(sys.argv[2]), size=(49, 67))
"""


def test_another_process_writes_the_same_bytes(
    artifacts: dict[str, Artifact], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-c", _AGAIN, str(checkpoint.path), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
    )
    first = artifacts["ncnn-fp16"]
    assert set(first.manifest.files) == {"model.ncnn.param", "model.ncnn.bin"}
    for name in first.manifest.files:
        again = next(tmp_path.glob(f"ncnn*/{name}"))
        assert again.read_bytes() == (first.path / name).read_bytes()
