"""The index of a store: a TOML file that says of every file what it is and which bytes it has.

    schema_version = 1

    [weights.lraspp-camvid]
    model = "lraspp_mobilenet_v3_large"
    format = "checkpoint"
    classes = ["Sky", "Building"]
    url = "lraspp-camvid-1f0c2d3e4b5a6978.tar"      # relative to the index, or whole
    sha256 = "1f0c..."
    size_bytes = 6628352
    licence = "CC-BY-NC-4.0"
    metrics = [{ data = "camvid/val", mean_iou = 0.6276 }]

Schema promise: fields are only added, with a default; a newer schema version is refused.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec

from segdeploy.core.errors import ConfigError, SegDeployError, UnknownNameError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.zoo.store.extra import require_zoo
from segdeploy.zoo.store.locations import resolve

SCHEMA_VERSION = 1
_TABLE = "weights"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{8,64}")


class Format(StrEnum):
    """Our checkpoint folder in a tar archive, or a library's file of tensors."""

    CHECKPOINT = "checkpoint"
    STATE_DICT = "state_dict"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Quality on a data set, shares in [0, 1]; None where it is not known."""

    data: str
    mean_iou: float | None = None
    pixel_accuracy: float | None = None
    num_images: int | None = None

    def __post_init__(self) -> None:
        for share in (self.mean_iou, self.pixel_accuracy):
            if share is not None and not 0 <= share <= 1:  # NaN is neither.
                raise ConfigError(f"a metric on {self.data} is {share}, which is not in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the store.

    `classes` are the K label names, or K alone. `sha256` may be shortened to its first digits, 8
    at least, where the publisher tells no more: 8 show damage, but not malice. `licence` and
    `source` are for people.
    """

    name: str
    model: str
    format: Format
    classes: tuple[str, ...] | int
    url: str
    sha256: str
    size_bytes: int | None = None
    preprocess: PreprocessSpec | None = None
    metrics: tuple[Metrics, ...] = ()
    licence: str = ""
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for field, value, pattern in (
            ("name", self.name, _NAME),
            ("sha256", self.sha256, _SHA256),
        ):
            if pattern.fullmatch(value) is None:
                raise ConfigError(f"{field} is '{value}'.", hint=f"It must match {pattern.pattern}")
        if self.num_classes < 1 or (self.size_bytes or 0) < 0:
            raise ConfigError(
                f"it has {self.num_classes} classes and {self.size_bytes} bytes, which cannot be"
            )

    @property
    def num_classes(self) -> int:
        """K, the number of label names."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return one row of `segdeploy zoo list`."""
        return {"num_classes": self.num_classes, **msgspec.to_builtins(self)}


@dataclass(frozen=True)
class Index:
    """All entries of a store by name, their addresses made whole."""

    location: str
    entries: dict[str, Entry]

    def get(self, name: str) -> Entry:
        """Return an entry.

        Raises:
            UnknownNameError: If there is none; the hint lists the nearest names.
        """
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=3, cutoff=0.4)
            asked = f"Did you mean {' or '.join(near)}? " if near else ""
            raise UnknownNameError(
                f"The store has no '{name}' ({self.location}).",
                hint=f"{asked}See 'segdeploy zoo list'.",
            )
        return self.entries[name]


def decode_index(content: bytes, location: str) -> Index:
    """Read the content of an index that lies at `location`.

    Raises:
        ConfigError: If it is no index, is newer, or lacks or misuses a field.
    """
    plain = _decode(content, location)
    entries = {name: _entry(name, fields, location) for name, fields in plain[_TABLE].items()}
    return Index(location, entries)


def _decode(content: bytes, location: str) -> dict[str, Any]:
    try:
        plain = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors.
        raise ConfigError(f"{location} is not readable TOML: {error}.") from error
    version = plain.get("schema_version")
    if not isinstance(version, int) or not isinstance(plain.setdefault(_TABLE, {}), dict):
        raise ConfigError(f"{location} is not the index of a store (no schema_version).")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{location} has schema version {version}; this segdeploy reads up to "
            f"{SCHEMA_VERSION}.",
            hint="Install a newer segdeploy.",
        )
    return plain


def _entry(name: str, fields: Any, location: str) -> Entry:
    try:
        entry = msgspec.convert({**fields, "name": name}, Entry)
        return replace(entry, url=resolve(location, entry.url))
    except (TypeError, msgspec.ValidationError, SegDeployError) as error:
        raise ConfigError(f"{location}: '{name}' is not valid: {error}") from error


def add_entry(content: bytes, entry: Entry, location: str) -> bytes:
    """Return the index's content with an entry added, or in place of the one of its name.

    An addition keeps what is there byte for byte; a replacement writes the file anew, without its
    comments. Empty content becomes a new index.

    Raises:
        ConfigError: If the content is no index.
        BackendUnavailableError: If the package that writes TOML is not installed.
    """
    writer = require_zoo("tomli_w", "Writing an index")
    content = content or f"schema_version = {SCHEMA_VERSION}\n".encode()
    plain = _decode(content, location)
    fields = _compact(msgspec.to_builtins(entry) | {"name": None})
    if entry.name in plain[_TABLE]:
        plain[_TABLE][entry.name] = fields
        added = writer.dumps(plain).encode()
    else:
        table = writer.dumps({_TABLE: {entry.name: fields}}).encode()
        added = content.rstrip() + b"\n\n" + table
    decode_index(added, location)
    return bytes(added)


def _compact(value: Any) -> Any:
    """TOML has no null: what is not known is left out, as is what is empty."""
    if isinstance(value, dict):
        return {k: _compact(v) for k, v in value.items() if v not in (None, "", [], ())}
    return [_compact(v) for v in value] if isinstance(value, list | tuple) else value
