"""One process per run folder; a killed one leaves no lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segdeploy.core.errors import ArtifactError, RunLockedError
from segdeploy.core.lock import run_lock

_HOLDER = """
import sys, time
from pathlib import Path
from segdeploy.core.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def _another_process_holds(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", _HOLDER, str(run)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"held\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_second_process_is_told_and_changes_nothing(tmp_path: Path) -> None:
    leftover = tmp_path / ".a.0123abcd.tmp"
    with _another_process_holds(tmp_path):
        leftover.write_text("the holder is just writing this")
        with pytest.raises(RunLockedError, match="in use by another process") as caught:
            run_lock(tmp_path).__enter__()
        assert caught.value.exit_code == 2
        assert leftover.exists()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with _another_process_holds(tmp_path) as child:
        child.kill()
        child.wait()
        with run_lock(tmp_path) as held:
            assert held == tmp_path


def test_a_missing_folder_is_made_and_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    with pytest.raises(KeyError), run_lock(run):
        raise KeyError
    with run_lock(run), pytest.raises(RunLockedError):
        run_lock(run).__enter__()
    assert list(run.iterdir()) == []


def test_a_forked_worker_that_outlives_the_stage_does_not_hold_the_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with run_lock(tmp_path):
        child = os.fork()
        if child == 0:  # Waits until the parent has closed its end.
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    try:
        with run_lock(tmp_path):
            pass
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


def test_a_file_instead_of_a_folder_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(ArtifactError, match="Cannot write"):
            run_lock(path).__enter__()
