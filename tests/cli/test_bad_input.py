"""Damaged folders, full disks, busy runs: the right exit code, and nothing lost or half-written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from segdeploy.core.folder import Checkpoint, load_folder
from segdeploy.data import open_dataset
from segdeploy.export import export

Run = Callable[..., tuple[int, str, str]]
DATA = "synthetic:64x96:8"


@pytest.fixture(scope="module")
def whole_run(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint and a TorchScript artifact."""
    run = tmp_path_factory.mktemp("bad") / "run"
    shutil.copytree(tiny_checkpoint.path, run / "checkpoint")
    export(run / "checkpoint", ["torchscript-fp32"], run)
    return run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """One readable picture."""
    path = tmp_path / "photo.png"
    Image.fromarray(open_dataset(DATA, "val")[0].image).save(path)
    return path


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


_READERS = (
    ["evaluate", "FOLDER", "--data", DATA],
    ["bench", "FOLDER", "--seconds", "0.1"],
    ["predict", "FOLDER", "PHOTO", "--out", "OUT"],
)


@pytest.mark.parametrize("line", _READERS, ids=lambda line: str(line[0]))
@pytest.mark.parametrize("damage", ["payload flipped", "payload gone", "manifest flipped"])
@pytest.mark.parametrize("name", ["checkpoint", "torchscript-fp32"])
def test_a_damaged_folder_is_exit_2_and_stays_as_it_is(
    cli: Run, run: Path, photo: Path, tmp_path: Path, line: list[str], damage: str, name: str
) -> None:
    folder = load_folder(run / name)
    if damage == "payload flipped":
        _flip(folder.payload)
    elif damage == "payload gone":
        folder.payload.unlink()
    else:
        _flip(folder.path / "manifest.json")
    before = _listing(run)
    words = {"FOLDER": str(folder.path), "PHOTO": str(photo), "OUT": str(tmp_path / "out")}
    code, out, err = cli(*[words.get(word, word) for word in line], "--json")
    assert code == 2, err
    assert name in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 2
    assert _listing(run) == before
    assert not (tmp_path / "out").exists()


def test_a_run_in_use_is_refused_by_every_stage_that_writes(cli: Run, run: Path) -> None:
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    before = _listing(run)
    artifact, checkpoint = str(run / "torchscript-fp32"), str(run / "checkpoint")
    try:
        for line in (
            ["export", checkpoint, "--target", "torchscript-fp32", "--out", str(run), "--force"],
            ["verify", artifact],
            ["evaluate", artifact, "--data", DATA],
        ):
            code, _, err = cli(*line)
            assert code == 2, line
            assert "in use by another process" in err
    finally:
        os.close(handle)
    assert _listing(run) == before


def test_damaged_pictures_are_named_and_the_others_done(
    cli: Run, run: Path, photo: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(photo, pictures / "good.png")
    (pictures / "cut.png").write_bytes(photo.read_bytes()[:200])
    (pictures / "empty.jpg").touch()
    out = tmp_path / "masks"
    code, _, err = cli("predict", str(run / "checkpoint"), str(pictures), "--out", str(out))
    assert code == 2
    assert "cut.png" in err
    assert "empty.jpg" in err
    assert sorted(p.name for p in out.iterdir()) == ["good.png", "good_overlay.png"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_exit_2_and_nothing_is_half_written(
    cli: Run, run: Path, small_disk: Path
) -> None:
    checkpoint = str(run / "checkpoint")
    lines = (
        ["export", checkpoint, "--target", "torchscript-fp32", "--out", str(small_disk / "run")],
        ["train", "--model", "lraspp_mobilenet_v3_small", "--data", DATA, "--epochs", "1",
         "--workers", "0", "--out", str(small_disk / "run")],
    )  # fmt: skip
    for line in lines:
        code, _, err = cli(*line)
        assert code == 2, err
        assert "No space left" in err
        assert "Traceback" not in err
        left = [p for p in small_disk.rglob("*") if p.is_file() and p.suffix != ".jsonl"]  # Logs.
        assert left == [], left
        for log in small_disk.rglob("*.jsonl"):
            assert all(json.loads(text) for text in log.read_text().splitlines())


def test_ctrl_c_while_exporting_leaves_the_old_artifact(run: Path) -> None:
    before = _listing(run)
    process = subprocess.Popen(
        [sys.executable, "-m", "segdeploy", "export", str(run / "checkpoint"), "--target",
         "onnx-fp32", "--target", "torchscript-fp32", "--force", "--out", str(run)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    left = {k: v for k, v in _listing(run).items() if "onnx-fp32" not in k}
    assert left == before


def test_json_of_a_failed_verification_is_whole(cli: Run, run: Path) -> None:
    code, out, err = cli("verify", str(run / "torchscript-fp32"), "--json")
    assert json.loads(out)["passed"] is True, err
    assert code == 0
