"""Temporary folders that a killed process leaves are removed by the next one that makes one.

Ours is told from others' by a file in it that its process holds a lock on (`flock`) for as long as
it lives: a lock that can be had means that the process is gone. The file is locked before it gets
its name, so that a folder that is just being made is never taken for a left one. A file system
without locks gives no such file, and nothing is removed then.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

_PREFIX, _OWNER = "segdeploy-", ".segdeploy-owner"


class ScratchFolder(TemporaryDirectory[str]):
    """A temporary folder of this process; making one removes those of processes that are gone."""

    def __init__(self) -> None:
        remove_left_scratch(Path(gettempdir()))
        super().__init__(prefix=_PREFIX)
        self._owner = _claim(Path(self.name))

    def cleanup(self) -> None:
        """Remove the folder; the lock is held until that is done."""
        try:
            super().cleanup()
        finally:
            if self._owner is not None:
                os.close(self._owner)
                self._owner = None


def _claim(folder: Path) -> int | None:
    """Return a locked handle of the owner's file, if there are locks here."""
    unnamed, handle = folder / f"{_OWNER}.new", None
    try:
        handle = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(folder / _OWNER)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def remove_left_scratch(place: Path) -> None:
    """Remove the scratch folders in a folder whose processes are gone; only this user's."""
    with suppress(OSError):
        for folder in place.glob(f"{_PREFIX}*"):
            with suppress(OSError), _taken_over(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _taken_over(folder: Path) -> Iterator[None]:
    """Hold a left folder's lock.

    Raises:
        OSError: If it is another user's, none of ours, or its process lives.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not ours")
    handle = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
