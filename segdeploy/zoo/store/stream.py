"""Bytes on their way: what the web, a disk and fsspec's file systems have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segdeploy.core.errors import DownloadError
from segdeploy.zoo.store.locations import shown


class BrokenConnectionError(DownloadError):
    """Worth another try: a connection that was cut, timed out, or a server's own trouble."""


@dataclass(frozen=True)
class Stream:
    """An open file somewhere.

    `read(n)` returns 1 to n bytes, none at the end, and raises DownloadError only. `start` is the
    offset of the first byte, which is 0 where a server cannot go on from an offset; `total` is the
    length of the whole file, None if unknown. `validator` names this version of the content for
    the next request (HTTP's If-Range), empty if there is none.
    """

    read: Callable[[int], bytes]
    close: Callable[[], None]
    start: int = 0
    total: int | None = None
    validator: str = ""

    def check_end(self, location: str, done: int) -> None:
        """Check, at the end, that `done` bytes are all: a cut connection looks like an end.

        Raises:
            BrokenConnectionError: If more was announced.
        """
        if self.total is not None and done < self.total:
            raise BrokenConnectionError(
                f"The connection to {shown(location)} broke after {done} of {self.total} bytes.",
                hint="Run it again: what arrived is kept.",
            )
