"""Open any location to read, and try again where that may help."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from segdeploy.zoo.store.filesystems import open_file, open_remote
from segdeploy.zoo.store.locations import is_web, local_path
from segdeploy.zoo.store.stream import BrokenConnectionError, Stream
from segdeploy.zoo.store.web import open_web

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a silent server, and how often to try again without any progress.

    The first try again waits `backoff_s`, each further one twice as long.
    """

    timeout_s: float = 30.0
    retries: int = 4
    backoff_s: float = 1.0


def open_stream(
    location: str, *, start: int = 0, validator: str = "", timeout_s: float = 30.0
) -> Stream:
    """Open a location at byte `start`.

    Raises:
        DownloadError: If it cannot be read.
        BackendUnavailableError: If its file system needs a package that is not installed.
    """
    path = local_path(location)
    if path is not None:
        return open_file(path, start=start)
    if is_web(location):
        return open_web(location, start=start, validator=validator, timeout_s=timeout_s)
    return open_remote(location, start=start)


def retry(attempt: Callable[[], T], patience: Patience, arrived: Callable[[], int]) -> T:
    """Return what `attempt` returns, tried again after broken connections.

    Args:
        attempt: The work.
        patience: How often.
        arrived: Number of bytes so far. More than ever before is progress, and tries count anew:
            a server that cuts every connection late is slow, not dead.

    Raises:
        BrokenConnectionError: The last one, when patience is over.
    """
    most, failures = arrived(), 0
    while True:
        try:
            return attempt()
        except BrokenConnectionError:
            failures = 1 if arrived() > most else failures + 1
            most = max(most, arrived())
            if failures > patience.retries:
                raise
            time.sleep(patience.backoff_s * 2 ** (failures - 1))
