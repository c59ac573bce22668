"""One process per run folder, by `flock` on the folder itself: a killed process leaves no lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdeploy.core.errors import RunLockedError
from segdeploy.core.files import remove_leftovers, write_errors


@contextmanager
def run_lock(run: Path) -> Iterator[Path]:
    """Hold the run folder (made if absent) for the block.

    Raises:
        RunLockedError: If another process holds it.
        ArtifactError: If the folder cannot be made.
    """
    with write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunLockedError(
                f"The run folder {run} is in use by another process.",
                hint="Wait until it has finished, or choose another folder.",
            ) from error
        remove_leftovers(run)
        yield run
    finally:
        os.close(handle)
