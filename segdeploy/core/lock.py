"""One process per run folder, by `flock` on the folder itself: a killed process leaves no lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdeploy.core.errors import ArtifactError, RunLockedError
from segdeploy.core.files import remove_leftovers, write_errors


@contextmanager
def run_lock(run: Path, wait_s: float = 0.0) -> Iterator[Path]:
    """Hold the run folder (made if absent) for the block, waiting so long until it is free.

    Raises:
        RunLockedError: If another process holds it.
        ArtifactError: If the folder cannot be made or locked.
    """
    is_new = not run.exists()
    with write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run, os.O_RDONLY)
    try:
        try:
            _lock(handle, time.monotonic() + wait_s)
        except BlockingIOError as error:
            raise _in_use(run) from error
        except OSError as error:
            raise ArtifactError(
                f"The run folder {run} cannot be locked: {error.strerror}.",
                hint="Its file system has no locks; choose a folder on a local disk.",
            ) from error
        if not _is_same(handle, run):  # Removed between opening and locking it, see below.
            raise _in_use(run)
        remove_leftovers(run)
        try:
            yield run
        except BaseException:
            if is_new:
                with suppress(OSError):
                    run.rmdir()  # Only if it is empty: what failed at once leaves nothing behind.
            raise
    finally:
        with suppress(OSError):  # Closing is not enough: forked workers may hold a copy.
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _lock(handle: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _is_same(handle: int, run: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), run.stat())
    except OSError:
        return False


def _in_use(run: Path) -> RunLockedError:
    return RunLockedError(
        f"The run folder {run} is in use by another process.",
        hint="Wait until it has finished, or choose another folder.",
    )
