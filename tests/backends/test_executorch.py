"""ExecuTorch programs: agree with eager, keep to their bounds, tell what is not delegated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segdeploy.backends import open_session
from segdeploy.backends.executorch import EXECUTORCH, require_runtime
from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    DataError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Artifact, Checkpoint
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.data import open_dataset
from segdeploy.export import export

pytest.importorskip("executorch")
pytest.importorskip("torchao")

SmallNet = Callable[[Path, int], Checkpoint]
DATA = "synthetic:48x64:16"
BOUNDS = SizeBounds((33, 40), (48, 64), (97, 131), max_batch=3)
SIZES = [(1, 48, 64), (3, 33, 40), (2, 97, 131), (1, 35, 131), (2, 64, 41)]
# Root mean square difference as a share of the logits' spread; int8 of untrained weights is rough.
CLOSE = {"fp32": 1e-5, "int8": 0.15}


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


def _export(checkpoint: Checkpoint, out: Path, target: str, **options: Any) -> Artifact:
    options = {"size": (48, 64), "calibration": DATA, "num_calibration_images": 8, **options}
    found = export(checkpoint.path, [f"executorch-{target}"], out, **options)[0].artifact
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bounded(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """Artifacts for a range of sizes, by precision."""
    out = tmp_path_factory.mktemp("run")
    size = SizeBounds(BOUNDS.least, BOUNDS.usual, BOUNDS.largest)
    return {
        precision: _export(checkpoint, out, precision, size=size, max_batch=3)
        for precision in CLOSE
    }


def _images(num: int, height: int, width: int) -> np.ndarray:
    scenes = open_dataset("synthetic:128x160:16", "val")
    return np.stack([scenes[i].image[:height, :width] for i in range(num)])


def _tensors(num: int, height: int, width: int) -> np.ndarray:
    return np.stack([normalize_image(i, PreprocessSpec()) for i in _images(num, height, width)])


@pytest.mark.parametrize("precision", CLOSE)
def test_agrees_with_eager_at_odd_sizes_and_batches_within_the_bounds(
    bounded: dict[str, Artifact], checkpoint: Checkpoint, precision: str
) -> None:
    artifact = bounded[precision]
    assert artifact.manifest.bounds == BOUNDS
    session, eager = open_session(artifact), open_session(checkpoint)
    for size in SIZES:
        batch = _tensors(*size)
        found, exact = session.run(batch)["logits"], eager.run(batch)["logits"]
        assert found.shape == exact.shape
        assert found.dtype == np.float32
        distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
        assert distance < CLOSE[precision], size
    session.close()


def test_int8_stores_bytes_and_rounds(bounded: dict[str, Artifact], checkpoint: Checkpoint) -> None:
    """Else a float program under the name of int8 would pass the test above."""
    batch = _tensors(1, 48, 64)
    found = open_session(bounded["int8"]).run(batch)["logits"]
    exact = open_session(checkpoint).run(batch)["logits"]
    assert np.abs(found - exact).max() > 1e-3 * exact.std()
    assert len(np.unique(found[0, :, ::2, ::2])) < exact[0, :, ::2, ::2].size


def test_sizes_and_batches_outside_the_bounds_are_refused(bounded: dict[str, Artifact]) -> None:
    session = open_session(bounded["fp32"])
    for size in [(1, 32, 64), (1, 48, 39), (1, 98, 64), (1, 48, 132), (4, 48, 64)]:
        with pytest.raises(DataError, match=r"33x40\.\.48x64\.\.97x131"):
            session.run(_tensors(*size))
        with pytest.raises(DataError, match="batches up to 3"):
            session.bind(_tensors(*size))


def test_what_is_not_delegated_is_told(
    bounded: dict[str, Artifact], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    artifact = _export(checkpoint, tmp_path, "fp32")
    told = json.loads((artifact.path / "delegation.json").read_text())
    nearest, bilinear = "aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec"
    assert told == {"num_delegates": 2, "not_delegated": {nearest: 1}}  # XNNPACK has no nearest.
    told = json.loads((bounded["fp32"].path / "delegation.json").read_text())
    assert set(told["not_delegated"]) == {nearest, bilinear}  # Nor a resize to an open size.
    assert "delegation.json" in artifact.manifest.companions
    with pytest.raises(DataError):
        open_session(artifact).run(_tensors(1, 48, 65))


@pytest.mark.parametrize("num_classes", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_images_become_labels(small_net: SmallNet, tmp_path: Path, num_classes: int) -> None:
    checkpoint = small_net(tmp_path / "checkpoint", num_classes)
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
    session = open_session(_export(checkpoint, tmp_path, "fp32", io=io))
    images, tensors = _images(1, 48, 64), _tensors(1, 48, 64)
    logits = open_session(checkpoint).run(tensors)["logits"]
    found = session.run(images)
    assert found["labels"].dtype == (np.uint8 if num_classes < 256 else np.uint16)
    np.testing.assert_array_equal(found["labels"], logits.argmax(1))
    odds = np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(found["confidence"], 1 / odds, rtol=1e-4)


def test_int8_may_end_at_low_resolution(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What PT2E captures is no module with an interpolation any more: the cut comes before."""
    io = IoContract(InputKind.IMAGE, OutputKind.LOW_LOGITS)
    low = open_session(_export(checkpoint, tmp_path, "int8", io=io)).run(_images(1, 48, 64))
    assert low["low_logits"].shape[2] < 48
    found = torch.nn.functional.interpolate(
        torch.from_numpy(low["low_logits"]), (48, 64), mode="bilinear"
    ).numpy()
    exact = open_session(checkpoint).run(_tensors(1, 48, 64))["logits"]
    distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
    assert distance < CLOSE["int8"]


def test_a_bound_call_runs_and_a_closed_session_refuses(bounded: dict[str, Artifact]) -> None:
    session = open_session(bounded["fp32"])
    call = session.bind(_tensors(1, 48, 64))
    call()
    kept = session.run(_tensors(1, 48, 64))["logits"]
    before = kept.copy()
    session.run(_tensors(2, 33, 40))
    np.testing.assert_array_equal(kept, before)  # A copy, not the runtime's memory.
    session.close()
    for use in (call, lambda: session.run(_tensors(1, 48, 64))):
        with pytest.raises(ArtifactError, match="closed"):
            use()


def test_what_is_damaged_or_contradicts_or_is_not_there_is_refused(
    bounded: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = bounded["fp32"]
    with pytest.raises(BackendUnavailableError, match="CPU"):
        open_session(artifact, "cuda")
    logits = artifact.manifest.outputs[0]
    wrong = artifact.manifest.replace(outputs=(replace(logits, dtype="uint8"),))
    with pytest.raises(ArtifactError, match="manifest says"):
        EXECUTORCH.open(Artifact(artifact.path, wrong))
    (tmp_path / "model.pte").write_bytes(artifact.payload.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cannot open"):
        EXECUTORCH.open(Artifact(tmp_path, artifact.manifest))


def test_threads_are_those_of_the_environment(
    bounded: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for threads in ("2", "1"):
        monkeypatch.setenv("SEGDEPLOY_NUM_THREADS", threads)
        open_session(bounded["fp32"]).close()
        found.append(require_runtime()._threadpool_get_thread_count())
    assert found == [2, 1]


def test_any_size_at_all_is_refused_before_anything_is_built(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedTargetError, match="range of sizes"):
        export(checkpoint.path, ["executorch-fp32"], tmp_path / "run", size=None)
    assert not (tmp_path / "run").exists()


def test_the_program_tells_what_it_is(bounded: dict[str, Artifact]) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(bounded["fp32"].payload)
    method = program.load_method("segdeploy")
    assert method is not None
    facts = json.loads(method.execute([])[0])
    assert facts["target"] == "executorch-fp32"
    assert facts["classes"] == [f"c{i}" for i in range(5)]
    assert facts["preprocess"]["mean"] == list(PreprocessSpec().mean)


_AGAIN = """
import sys
from pathlib import Path
from segdeploy.core.contract import SizeBounds
from segdeploy.export import export
export(Path(sys.argv[1]), ["executorch-int8"], Path(sys.argv[2]), calibration=sys.argv[3],
       num_calibration_images=8, size=SizeBounds((33, 40), (48, 64), (97, 131)), max_batch=3)
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(
    bounded: dict[str, Artifact], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", _AGAIN, str(checkpoint.path), str(tmp_path), DATA],
        check=True, env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    again = next(tmp_path.glob("*/model.pte"))
    assert again.read_bytes() == bounded["int8"].payload.read_bytes()
