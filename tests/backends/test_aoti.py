"""AOTInductor packages: agree with eager, say what machine they need, hold no paths."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segdeploy.backends import open_session
from segdeploy.backends.aoti import (
    AOTI,
    check_machine,
    compiled_features,
    cpu_features,
    read_metadata,
    require_compiler,
)
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError, DataError
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.export import export

SmallNet = Callable[[Path, int], Checkpoint]
SIZES = [(1, 96, 128), (2, 33, 65), (3, 47, 131)]
# Root mean square difference as a share of the logits' spread.
CLOSE = {"fp32": 1e-5, "bf16": 0.03}


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint) -> Artifact:
    (outcome,) = export(checkpoint.path, ["aoti-fp32"], checkpoint.path.parent)
    return load_artifact(outcome.path)


def _images(num: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (num, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def _batch(num: int, height: int, width: int) -> np.ndarray:
    spec = PreprocessSpec()
    return np.stack([normalize_image(image, spec) for image in _images(num, height, width)])


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
    return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())


def test_a_folder_that_the_compiler_cannot_work_in_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "my files"))
    request = BuildRequest(
        checkpoint=checkpoint, payload=tmp_path / "model.pt2", precision=Precision.FP32,
        io=IoContract(),
    )  # fmt: skip
    with pytest.raises(BuildError, match=r"has a space.*my files"):
        AOTI.build(request)


def test_it_agrees_with_eager_at_any_size(checkpoint: Checkpoint, artifact: Artifact) -> None:
    session, reference = open_session(artifact), open_session(checkpoint)
    for size in SIZES:
        batch = _batch(*size)
        batch.setflags(write=False)
        exact = reference.run(batch)["logits"]
        assert _distance(session.run(batch)["logits"], exact) < CLOSE["fp32"]
        session.bind(batch)()


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [5, 300])
def test_bf16_with_image_in_and_labels_out_has_the_types_of_the_manifest(
    small_net: SmallNet, num_classes: int, tmp_path: Path
) -> None:
    checkpoint = small_net(tmp_path / "checkpoint", num_classes)
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
    (outcome,) = export(checkpoint.path, ["aoti-bf16"], tmp_path, io=io)
    session = open_session(load_artifact(outcome.path))
    for size in SIZES:
        found = session.run(_images(*size))
        logits = open_session(checkpoint).run(_batch(*size))["logits"]
        assert {k: v.dtype.name for k, v in found.items()} == {
            spec.name: spec.dtype for spec in session.outputs
        }
        assert found["labels"].dtype == (np.uint16 if num_classes > 255 else np.uint8)
        top2 = np.sort(logits, axis=1)[:, -2:]
        is_clear = top2[:, 1] - top2[:, 0] > 0.1 * logits.std()
        assert (found["labels"] == logits.argmax(1))[is_clear].all()
        probability = torch.softmax(torch.from_numpy(logits), 1).amax(1).numpy()
        np.testing.assert_allclose(found["confidence"], probability, atol=0.01)


@pytest.mark.slow
def test_bf16_agrees_with_eager_and_is_no_fp32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (outcome,) = export(checkpoint.path, ["aoti-bf16"], tmp_path, size=(33, 65))
    session = open_session(load_artifact(outcome.path))
    batch = _batch(2, 33, 65)
    exact = open_session(checkpoint).run(batch)["logits"]
    assert CLOSE["fp32"] < _distance(session.run(batch)["logits"], exact) < CLOSE["bf16"]
    with pytest.raises(DataError, match="any x 3 x 33 x 65"):
        session.run(_batch(2, 65, 33))


def test_the_package_says_what_it_is_and_what_it_needs(artifact: Artifact) -> None:
    told = read_metadata(artifact.payload)
    assert told["segdeploy.target"] == "aoti-fp32"
    assert json.loads(told["segdeploy.classes"]) == list(artifact.manifest.classes)
    assert told["segdeploy.torch"] == torch.__version__.partition("+")[0]
    assert told["segdeploy.machine"] == platform.machine()
    assert set(told["segdeploy.cpu_features"].split()) == compiled_features()
    package = torch._inductor.aoti_load_package(str(artifact.payload))
    assert package.get_metadata()["segdeploy.target"] == "aoti-fp32"  # As C++ reads it.


def test_the_package_holds_no_sources_and_no_paths(artifact: Artifact) -> None:
    with zipfile.ZipFile(artifact.payload) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".cpp", ".h"))]
        content = b"".join(archive.read(name) for name in archive.namelist())
    for place in (Path.home(), Path(torch.__file__).parent, artifact.path.parent):
        assert str(place).encode() + b"/" not in content
    assert b"torchinductor" not in content


def test_another_torch_is_refused(artifact: Artifact) -> None:
    told = read_metadata(artifact.payload) | {"segdeploy.torch": "2.12.1"}
    with pytest.raises(BackendUnavailableError, match=r"is for torch 2\.12\.1") as caught:
        check_machine(told, "model.pt2")
    assert "torch==2.12.1" in caught.value.hint


def test_another_cpu_is_refused_before_its_code_is_loaded(
    artifact: Artifact, tmp_path: Path
) -> None:
    told = read_metadata(artifact.payload)
    check_machine(told, "model.pt2")
    with pytest.raises(BackendUnavailableError, match="machine code for riscv64"):
        check_machine(told | {"segdeploy.machine": "riscv64"}, "model.pt2")
    changed = told | {"segdeploy.cpu_features": "avx512f avx1024"}
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/model.wrapper.so", b"no library")
        archive.writestr(
            "model/data/aotinductor/model/model.wrapper_metadata.json", json.dumps(changed)
        )
    with pytest.raises(BackendUnavailableError, match=r"without .*avx1024"):
        AOTI.open(dataclasses.replace(artifact, path=tmp_path))


def test_the_features_of_a_cpu_are_read_as_compilers_write_them(tmp_path: Path) -> None:
    intel, arm = tmp_path / "intel", tmp_path / "arm"
    intel.write_text("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 amx_tile\n")
    arm.write_text("processor : 0\nFeatures\t: fp asimd sve\n")
    assert cpu_features(intel) == {"fpu", "avx2", "avx512bf16", "amxtile"}
    assert cpu_features(arm) == {"fp", "asimd", "sve"}
    assert cpu_features(tmp_path / "none") is None
    here = cpu_features()
    assert here is None or compiled_features() <= here


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler")
    AOTI.require()  # Running a package needs none.
    with pytest.raises(BackendUnavailableError, match="there is no no-such-compiler"):
        require_compiler()


def test_what_its_machine_code_does_not_check_is_refused(artifact: Artifact) -> None:
    session = open_session(artifact)
    for size in ((1, 31, 64), (1, 64, 16)):
        with pytest.raises(DataError, match="sides of 32 to 16384"):
            session.run(_batch(*size))
    with pytest.raises(DataError, match="must be float32"):
        session.run(np.zeros((1, 32, 32, 3), np.float32))


def test_a_closed_session_and_another_device_are_refused(artifact: Artifact) -> None:
    session = open_session(artifact)
    call = session.bind(_batch(1, 33, 65))
    session.close()
    for use in (call, lambda: session.run(_batch(1, 33, 65))):
        with pytest.raises(ArtifactError, match="session is closed"):
            use()
    with pytest.raises(BackendUnavailableError, match="'cuda'"):
        open_session(artifact, "cuda")


@pytest.mark.parametrize("payload", [b"", b"garbage" * 100], ids=["empty", "garbage"])
def test_an_unreadable_package_is_an_artifact_error(
    artifact: Artifact, payload: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.pt2").write_bytes(payload)
    with pytest.raises(ArtifactError, match=r"cannot open .*model\.pt2"):
        AOTI.open(dataclasses.replace(artifact, path=tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="needs GNU strip")
def test_two_processes_write_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With other hash seeds, thread counts and folders."""
    contents = set()
    for seed in "12":
        folder = tmp_path / seed
        folder.mkdir()
        code = f"""
from pathlib import Path
from segdeploy.backends.aoti import AOTI
from segdeploy.core.contract import IoContract
from segdeploy.core.folder import load_checkpoint
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
AOTI.build(BuildRequest(checkpoint=load_checkpoint(Path({str(checkpoint.path)!r})),
    payload=Path({str(folder)!r}, "model.pt2"), precision=Precision.FP32, io=IoContract()))
"""
        variables = {
            "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed, "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | variables)
        contents.add((folder / "model.pt2").read_bytes())
    assert len(contents) == 1
