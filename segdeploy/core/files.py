"""Files that are either whole or absent: digests, atomic writes, JSON, folder replacement.

Everything is written under a temporary name beside its destination, synced, then renamed. An
`OSError` on the way (disk full, no permission) becomes an ArtifactError, and the temporary name is
removed, so a failed stage leaves the folder as it was.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-like value atomically, indented for people."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block succeeds.

    An existing folder is swapped in one step where the system can (Linux `renameat2`), so that a
    process killed at any moment leaves either the old folder or the new one.

    Raises:
        ArtifactError: If it cannot be written; the old folder is kept.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with write_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
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
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # Two steps: not atomic.
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
    """Remove temporary names that a killed process left; call it only while holding the lock."""
    for stale in folder.glob(".*.tmp"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)
