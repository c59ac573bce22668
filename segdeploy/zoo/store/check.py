"""Are the files of the cache still what the index promises?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from segdeploy.zoo.store.cache import cached_file
from segdeploy.zoo.store.download import is_whole
from segdeploy.zoo.store.index import Entry
from segdeploy.zoo.store.reading import read_index
from segdeploy.zoo.store.sources import Patience


class State(StrEnum):
    """Of one file of the cache."""

    OK = "ok"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Finding:
    """One entry, where its file lies, and in which state it is."""

    name: str
    file: Path
    state: State

    def to_dict(self) -> dict[str, Any]:
        """Return one row of `segdeploy zoo verify`."""
        return {"name": self.name, "state": str(self.state), "file": str(self.file)}


def verify(
    names: Sequence[str] = (),
    *,
    index: str | None = None,
    offline: bool = False,
    patience: Patience | None = None,
) -> list[Finding]:
    """Compare the cache with the index: all entries, or those named.

    Raises:
        UnknownNameError: If the index has no such entry.
        DownloadError: If the index cannot be read.
    """
    found = read_index(index, offline=offline, patience=patience)
    return [_check(found.get(name)) for name in names or sorted(found.entries)]


def _check(entry: Entry) -> Finding:
    file = cached_file(entry)
    if not file.exists():
        return Finding(entry.name, file, State.MISSING)
    return Finding(entry.name, file, State.OK if is_whole(entry, file) else State.DAMAGED)
