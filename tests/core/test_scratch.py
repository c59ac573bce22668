"""Scratch folders: a killed process's are removed, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segdeploy.core.scratch import ScratchFolder

KEEPER = """
import pathlib, sys, time
from segdeploy.core.scratch import ScratchFolder
folder = ScratchFolder()
pathlib.Path(folder.name, "batch").touch()
print(folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, of this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_with_the_block(place: Path) -> None:
    with ScratchFolder() as name:
        assert Path(name).parent == place
        with ScratchFolder() as other:  # The first one is in use.
            assert Path(name).is_dir()
            assert other != name
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_others_are_kept(place: Path) -> None:
    others = [place / "segdeploy-mine", place / "segdeploy-runs", place / "else"]
    for other in others:
        (other / "content").mkdir(parents=True)
    (others[2] / ".segdeploy-owner").touch()
    (place / "segdeploy-link").symlink_to(others[2])
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as keeper:
        assert keeper.stdout is not None
        left = Path(keeper.stdout.readline().strip())
        ScratchFolder().cleanup()
        assert (left / "batch").exists(), "its process lives"
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
    assert (left / "batch").exists()
    ScratchFolder().cleanup()
    assert not left.exists()
    assert sorted(place.iterdir()) == sorted([*others, place / "segdeploy-link"])
    assert all((other / "content").is_dir() for other in others)
