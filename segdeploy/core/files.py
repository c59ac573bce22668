"""Files that are either whole or absent: digests, atomic writes, JSON, folder replacement.

Everything is written under a temporary name beside its destination, synced, then renamed. An
`OSError` on the way (disk full, no permission) becomes an ArtifactError, and the temporary name is
removed, so a failed stage leaves the folder as it was.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from segdeploy.core.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.old)?\.tmp", re.DOTALL)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-like value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing below `path` into an ArtifactError that names it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror or error}.",
            hint="Check free space and permissions; nothing was left half-written.",
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part.

    Raises:
        ArtifactError: If the file cannot be written; the old one is kept.
    """
    temporary = _temporary_name(path)
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_whole(stream: BinaryIO, content: bytes) -> None:
    """Write at the end of an unbuffered file all of the content, or nothing of it.

    Raises:
        OSError: If it cannot be written; the file is as it was.
    """
    size = os.fstat(stream.fileno()).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(stream.fileno(), size)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-like value atomically, indented for people."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _temporary_name(path: Path, mark: str = "") -> Path:
    """Return a fresh hidden name beside `path`; `remove_leftovers` knows the pattern."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{mark}.tmp")


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block succeeds.

    An existing folder is swapped in one step where the system can (Linux `renameat2`), so that a
    process killed at any moment leaves either the old folder or the new one.

    Raises:
        ArtifactError: If it cannot be written, or `path` is a file; what was there is kept.
    """
    path = Path(os.path.realpath(path))  # Of a link, the folder behind it is replaced.
    temporary = _temporary_name(path)
    try:
        with write_errors(path):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "a file of this name is in the way")
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            _take_place(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; what was there before ends under the temporary name."""
    if not path.exists():
        temporary.rename(path)
        return
    if _exchange(temporary, path):
        return
    old = _temporary_name(path, ".old")  # Two steps: `remove_leftovers` mends a kill between them.
    path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; False where system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in a run; call it only while holding the lock.

    Looks into the run folder, its model folders and their `samples/`, for our own pattern only. An
    old folder whose successor never took its place is put back.
    """
    models = [manifest.parent for manifest in folder.glob("*/manifest.json")]
    for place in (folder, *models, *(model / "samples" for model in models)):
        for stale in place.glob(".*.tmp"):
            match = _LEFTOVER.fullmatch(stale.name)
            if match is not None:
                _remove_leftover(stale, place / match[1], is_old=match[2] is not None)


def _remove_leftover(stale: Path, place: Path, *, is_old: bool) -> None:
    with suppress(OSError):
        if is_old and not place.exists():
            stale.rename(place)
        elif stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)
