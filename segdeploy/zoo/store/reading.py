"""Which index is meant, and its content, from the web with a copy for the time without."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from segdeploy.core.errors import ConfigError, DownloadError
from segdeploy.core.files import write_bytes, write_errors
from segdeploy.zoo.store.cache import cached_index
from segdeploy.zoo.store.index import Index, decode_index
from segdeploy.zoo.store.locations import local_path, shown
from segdeploy.zoo.store.sources import Patience, open_stream, retry

ZOO = "SEGDEPLOY_ZOO"
_PACKAGED = Path(__file__).with_name("index.toml")
_MAX_BYTES = 16 << 20


def index_location(index: str | None) -> str:
    """Return what was given, else SEGDEPLOY_ZOO, else the index that comes with segdeploy."""
    return index or os.environ.get(ZOO) or str(_PACKAGED)


def read_index(
    index: str | None = None, *, offline: bool = False, patience: Patience | None = None
) -> Index:
    """Return the index at a path or URL; None means `SEGDEPLOY_ZOO` or the packaged one.

    Raises:
        ConfigError: If it is not valid.
        DownloadError: If it cannot be read, or is remote, `offline`, and was never read before.
    """
    location = index_location(index)
    if local_path(location) is not None:
        return decode_index(read_whole(location, patience), location)
    copy = cached_index(location)
    if offline:
        return decode_index(_kept(copy, location), location)
    content = read_whole(location, patience)
    found = decode_index(content, location)
    with write_errors(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(copy, content)
    return found


def _kept(copy: Path, location: str) -> bytes:
    try:
        return copy.read_bytes()
    except OSError as error:
        raise DownloadError(
            f"There is no copy of the index {shown(location)} yet.",
            hint="Run it once without --offline.",
        ) from error


def read_whole(location: str, patience: Patience | None = None) -> bytes:
    """Return the content of an index file.

    Raises:
        DownloadError: If it cannot be read.
        ConfigError: If it is too large for an index.
    """
    patience = patience or Patience()

    def attempt() -> bytes:
        content = bytearray()
        with closing(open_stream(location, timeout_s=patience.timeout_s)) as stream:
            while len(content) <= _MAX_BYTES and (chunk := stream.read(1 << 16)):
                content += chunk
        if len(content) <= _MAX_BYTES:
            stream.check_end(location, len(content))
        return bytes(content)

    content = retry(attempt, patience, lambda: 0)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{shown(location)} is too large for an index.")
    return content
