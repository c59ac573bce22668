"""Disks and the file systems of fsspec (s3, gcs, ...): open to read, and whole files to write.

fsspec drivers raise the errors of their own clients: all are caught here, and chained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segdeploy.core.errors import (
    BackendUnavailableError,
    ConfigError,
    DownloadError,
    SegDeployError,
)
from segdeploy.core.files import write_bytes, write_errors
from segdeploy.zoo.store.extra import require_zoo
from segdeploy.zoo.store.locations import is_web, local_path, scheme_of, shown
from segdeploy.zoo.store.stream import Stream


def open_file(path: Path, *, start: int = 0) -> Stream:
    """Open a file of this machine at byte `start`, or at 0 if it is shorter.

    Raises:
        DownloadError: If it cannot be read.
    """
    with _explained(str(path)):
        file = path.open("rb")
        return _stream(str(path), file, start, path.stat().st_size)


def open_remote(url: str, *, start: int = 0) -> Stream:
    """Open a file of one of fsspec's file systems at byte `start`, or at 0 if it is shorter.

    Raises:
        DownloadError: If it cannot be read.
        BackendUnavailableError: If fsspec or its driver is not installed.
    """
    with _explained(url):
        system, path = _file_system(url)
        return _stream(url, system.open(path, "rb"), start, system.info(path)["size"])


def _stream(location: str, file: Any, start: int, total: int) -> Stream:
    def read(size: int) -> bytes:
        with _explained(location):
            content: bytes = file.read(size)
            return content

    return Stream(read, file.close, file.seek(start if start <= total else 0), total)


def write_whole(location: str, content: bytes) -> None:
    """Write a file at once: a reader sees the old content or the new (S3 promises the same).

    Raises:
        ArtifactError: If a file of this machine cannot be written.
        ConfigError: If it is an http address.
        DownloadError: If a remote file cannot be written.
    """
    path = local_path(location)
    if path is not None:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        return
    check_writable(location)
    with _explained(location):
        system, name = _file_system(location)
        system.pipe_file(name, content)


def check_writable(location: str) -> None:
    """Refuse an http address.

    Raises:
        ConfigError: If it is one.
    """
    if is_web(location):
        raise ConfigError(
            f"{shown(location)} cannot be written to.",
            hint="Give the store's own address: a path, or a URL such as s3://bucket/zoo/.",
        )


def exists(location: str) -> bool:
    """Return True if there is a file.

    Raises:
        DownloadError: If the file system cannot be asked.
    """
    path = local_path(location)
    if path is not None:
        return path.exists()
    with _explained(location):
        system, name = _file_system(location)
        return bool(system.exists(name))


def _file_system(url: str) -> tuple[Any, str]:
    core = require_zoo("fsspec.core", f"A {scheme_of(url)}:// address")
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:  # fsspec is there, the driver (s3fs, gcsfs, ...) is not.
        raise BackendUnavailableError(f"Cannot open {shown(url)}: {error}.") from error
    return system, path


@contextmanager
def _explained(location: str) -> Iterator[None]:
    try:
        yield
    except SegDeployError:
        raise
    except Exception as error:  # The edge to foreign drivers.
        said = str(error) or type(error).__name__
        raise DownloadError(f"Cannot reach {shown(location)}: {said}.") from error
