"""One file of the index, whole and checked, or not there at all.

Bytes arrive in `NAME.part` beside the destination, and get the name when their sha256 is the
promised one. What an interrupted process leaves is continued by the next. The part file is its own
lock: who holds it writes, all others wait, then find the finished file; no lock outlives a process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from segdeploy.core.errors import DigestMismatchError
from segdeploy.core.files import sha256_file, write_errors
from segdeploy.zoo.store.index import Entry
from segdeploy.zoo.store.locations import shown
from segdeploy.zoo.store.sources import Patience, open_stream, retry
from segdeploy.zoo.store.stream import Stream

Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and how many there will be (None: unknown)."""

_CHUNK = 1 << 18


def download(
    entry: Entry,
    path: Path,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring the entry's file to `path`, unless it is there; a damaged one is replaced.

    Raises:
        DownloadError: If it cannot be fetched; what arrived is kept for the next time.
        DigestMismatchError: If the bytes are not the promised ones; nothing of them is kept.
        ArtifactError: If it cannot be written; nothing is kept.
    """
    if is_whole(entry, path):
        return
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _own_part(path.with_name(path.name + ".part")) as part:
            if is_whole(entry, path):  # Another process brought it while this one waited.
                return
            _Transfer(entry, part, patience or Patience(), progress).run()
            os.fsync(part.fileno())
            Path(part.name).replace(path)


def is_whole(entry: Entry, path: Path) -> bool:
    """Return True if the file is there and the promised one."""
    if not path.is_file() or entry.size_bytes not in {None, path.stat().st_size}:
        return False
    return sha256_file(path).startswith(entry.sha256)


@contextmanager
def _own_part(path: Path) -> Iterator[IO[bytes]]:
    """Hold the part file, as long as another process needs it before."""
    part = _lock(path)
    try:
        yield part
    except OSError:  # The disk is full or broken: half a file in its way helps nobody.
        path.unlink(missing_ok=True)
        raise
    finally:
        if os.fstat(part.fileno()).st_size == 0:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # Closing writes what is left, which fails on a full disk.
            part.close()


def _lock(path: Path) -> IO[bytes]:
    while True:
        part = path.open("a+b")
        try:
            fcntl.flock(part, fcntl.LOCK_EX)
            if _is_same(part, path):
                return part
        except BaseException:
            part.close()
            raise
        part.close()  # Renamed or removed while this process waited for it.


def _is_same(part: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


class _Transfer:
    """The way of one file into its part."""

    def __init__(
        self, entry: Entry, part: IO[bytes], patience: Patience, progress: Progress | None
    ) -> None:
        self._entry, self._part = entry, part
        self._patience, self._progress = patience, progress
        self._validator = ""

    def run(self) -> None:
        """Fetch and check; bytes that were continued and turn out wrong get a second chance."""
        is_continued = self._arrived() > 0
        found = self._fetch()
        if is_continued and not found.startswith(self._entry.sha256):
            self._part.truncate(0)  # The first half was of another version.
            found = self._fetch()
        if not found.startswith(self._entry.sha256):
            raise self._mismatch(f"sha256 {found}", f"sha256 {self._entry.sha256}")

    def _fetch(self) -> str:
        """Fetch what is missing and return the sha256 of all."""
        if self._entry.size_bytes is None or self._arrived() != self._entry.size_bytes:
            retry(self._receive, self._patience, self._arrived)
        return sha256_file(Path(self._part.name))

    def _arrived(self) -> int:
        return self._part.seek(0, os.SEEK_END)

    def _receive(self) -> None:
        stream = open_stream(
            self._entry.url,
            start=self._arrived(),
            validator=self._validator,
            timeout_s=self._patience.timeout_s,
        )
        with closing(stream):
            self._validator = stream.validator
            self._part.truncate(stream.start)
            done = self._copy(stream)
        self._part.flush()
        stream.check_end(self._entry.url, done)

    def _copy(self, stream: Stream) -> int:
        """Write what comes behind what is there, and return the length of both."""
        promised = self._entry.size_bytes
        if promised is not None and stream.total not in {None, promised}:
            raise self._mismatch(f"{stream.total} bytes", f"{promised} bytes")
        done, total = stream.start, promised or stream.total
        while chunk := stream.read(_CHUNK):
            done += len(chunk)
            if promised is not None and done > promised:
                raise self._mismatch(f"more than {promised} bytes", f"{promised} bytes")
            self._part.write(chunk)
            if self._progress is not None:
                self._progress(done, total)
        return done

    def _mismatch(self, found: str, promised: str) -> DigestMismatchError:
        """Throw the bytes away, and return the error."""
        self._part.truncate(0)
        return DigestMismatchError(
            f"{shown(self._entry.url)} is not the promised file of '{self._entry.name}': "
            f"found {found}, the index says {promised}.",
            hint="It was replaced or damaged on the server: tell the owner of the store, or get a "
            "newer index.",
        )
