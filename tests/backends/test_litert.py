"""LiteRT: the second environment (missing, broken, of another version), and the whole way in it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdeploy.backends import BACKENDS, describe_targets, isolation, open_session, require_backend
from segdeploy.backends.isolation import python_variable, require_elsewhere, setup_commands
from segdeploy.backends.litert import LITERT
from segdeploy.backends.litert_build import check_labels, restore_image
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, UnsupportedTargetError
from segdeploy.core.folder import Checkpoint, load_artifact, load_folder
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.data import Dataset, open_dataset
from segdeploy.export import export

VARIABLE = python_variable("litert")
SIZE = (96, 128)
DATA = "synthetic:96x128:16"
TRAINED = Path(__file__).parents[2] / "benchmarks" / "checkpoints" / "unet-camvid"


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def fake_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """A function that makes a program the interpreter of LiteRT's environment."""

    def make(script: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv(VARIABLE, str(path))
        return path

    return make


@pytest.mark.usefixtures("no_environment")
def test_without_its_environment_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="an environment of its own") as caught:
        require_backend(LITERT)
    for command in setup_commands("litert", "litert"):
        assert command in caught.value.hint
    assert VARIABLE in caught.value.hint
    assert caught.value.exit_code == 4
    assert str(tmp_path) in caught.value.hint
    hints = {row["name"]: row["hint"] for row in describe_targets()}
    assert "venv" in hints["litert-fp32"]


@pytest.mark.usefixtures("no_environment")
def test_the_commands_are_ones_that_a_shell_understands(tmp_path: Path) -> None:
    make, install = (shlex.split(command) for command in setup_commands("litert", "litert"))
    folder = tmp_path / "segdeploy" / "environments" / "litert"
    assert make == [sys.executable, "-m", "venv", str(folder)]
    assert install[:2] == [str(folder / "bin" / "pip"), "install"]
    assert install[-1].endswith("[litert]") or "[litert]==" in install[-1]
    assert any(part.startswith("torch==") and "+" not in part for part in install)


@pytest.mark.usefixtures("no_environment")
def test_an_export_without_it_is_refused_before_anything_is_built(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailableError, match="litert"):
        export(tiny_checkpoint.path, ["litert-fp32"], tmp_path / "run", size=SIZE)
    assert not list(tmp_path.glob("run/*/manifest.json"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "ended with exit code 3"),
        ("echo no module named segdeploy >&2; exit 1", "no module named segdeploy"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo nonsense", "ended with exit code 0"),
        ("exec sleep 60", "gave no answer within 2 s"),
    ],
)
def test_a_broken_environment_is_unavailable_with_its_last_words_and_the_commands(
    script: str,
    said: str,
    fake_python: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = fake_python(script)
    monkeypatch.setattr(isolation, "_REQUIRE_LIMIT_S", 2.0)
    with pytest.raises(BackendUnavailableError) as caught:
        require_elsewhere(LITERT)
    assert str(python) in caught.value.message
    assert said in str(caught.value)
    assert setup_commands("litert", "litert")[1] in caught.value.hint


def test_an_environment_without_the_package_names_it_and_its_own_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This very interpreter as LiteRT's: segdeploy is there, ai-edge-litert is not."""
    monkeypatch.setenv(VARIABLE, sys.executable)
    with pytest.raises(BackendUnavailableError, match="ai-edge-litert") as caught:
        require_elsewhere(LITERT)
    assert sys.executable in caught.value.message
    assert "an environment of its own: segdeploy doctor" in caught.value.hint
    assert "pip install" not in caught.value.hint  # Into this environment it would break it.


def test_an_environment_with_another_segdeploy_is_refused(
    fake_python: Callable[[str], Path],
) -> None:
    answer = json.dumps({"versions": {}, "segdeploy": {"segdeploy": "0.0.1"}, "arrays": []})
    program = (
        f"import os, sys; sys.stdin.readline(); os.write(int(sys.argv[1]), {answer!r}.encode())"
    )
    newline = "; os.write(int(sys.argv[1]), bytes([10])); sys.stdin.read()"
    fake_python(f'exec {sys.executable} -c {shlex.quote(program + newline)} "$4"')
    with pytest.raises(BackendUnavailableError, match=r"has segdeploy 0\.0\.1"):
        require_elsewhere(LITERT)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_calibration_images_come_back_exactly(order: str, synthetic_val: Dataset) -> None:
    spec = PreprocessSpec(channel_order=order)
    image = synthetic_val[0].image
    batch = normalize_image(image, spec)[None]
    assert (restore_image(batch, spec)[0] == image).all()


def test_it_says_what_it_is() -> None:
    assert BACKENDS.get("litert") is LITERT
    assert LITERT.environment == "litert"
    assert not LITERT.limits.dynamic
    assert not LITERT.limits.batches


def _require() -> None:
    try:
        require_backend(LITERT)
    except BackendUnavailableError as error:
        pytest.skip(f"{error.message} {error.hint}")


@pytest.mark.slow
def test_the_whole_way_in_its_own_environment(tmp_path: Path) -> None:
    _require()
    trained = load_folder(TRAINED)
    plain, int8 = export(
        trained.path,
        ["litert-fp32", "litert-int8"],
        tmp_path,
        size=SIZE,
        calibration=DATA,
        num_calibration_images=4,
    )
    again = export(
        trained.path, ["litert-fp32"], tmp_path / "again", size=SIZE
    )[0]  # fmt: skip
    folders = [load_artifact(outcome.path) for outcome in (plain, int8, again)]
    assert folders[0].payload.read_bytes() == folders[2].payload.read_bytes()
    assert folders[1].size_mib < 0.5 * folders[0].size_mib
    assert os.fsencode(str(Path(__file__).parents[2])) not in folders[0].payload.read_bytes()
    assert b'"classes"' in folders[0].payload.read_bytes()
    image = open_dataset(DATA, "val")[0].image
    batch = normalize_image(image, trained.manifest.preprocess)[None]
    wanted = open_session(trained).run(batch)["logits"]
    for folder, limit in zip(folders, (1e-4, 0.25, 1e-4), strict=True):
        session = open_session(folder)
        found = session.run(batch)["logits"]
        assert np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std() < limit
        session.bind(batch)()
        session.close()
        with pytest.raises(ArtifactError, match="closed"):
            session.run(batch)
    with pytest.raises(BackendUnavailableError, match="set up for the CPU"):
        open_session(folders[0], "cuda")
    folders[0].payload.write_bytes(b"TFL3 broken")
    with pytest.raises(ArtifactError):
        open_session(folders[0])


@pytest.mark.slow
def test_image_to_labels_equals_the_reference_composition(tmp_path: Path) -> None:
    _require()
    trained = load_folder(TRAINED)
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
    made = export(trained.path, ["litert-fp32"], tmp_path, size=SIZE, io=io)[0]
    session = open_session(load_artifact(made.path))
    image = open_dataset(DATA, "val")[0].image
    found = session.run(image[None])
    assert found["labels"].dtype == np.uint8
    batch = normalize_image(image, trained.manifest.preprocess)[None]
    logits = open_session(trained).run(batch)["logits"]
    assert np.mean(found["labels"] != logits.argmax(axis=1)) < 1e-3
    assert found["confidence"].shape == (1, *SIZE)
    session.close()


def test_uint16_labels_are_refused_by_name() -> None:
    class _Manifest:
        classes = tuple(map(str, range(300)))

    class _Folder:
        manifest = _Manifest()

    class _Request:
        checkpoint = _Folder()
        io = IoContract(output=OutputKind.LABELS)

    with pytest.raises(UnsupportedTargetError, match="uint16"):
        check_labels(_Request())  # type: ignore[arg-type]
