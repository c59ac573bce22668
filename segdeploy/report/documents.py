"""Reading result files that may be missing, old, damaged or made by hand.

A missing value is None (shown as "-"); a value of the wrong type is None as well, and is named
among the problems, so that a report never fails halfway and never shows a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.errors import ArtifactError
from segdeploy.core.results import read_result


@dataclass(frozen=True)
class Document:
    """One JSON document: `value` by keys, with the problems found on the way."""

    where: str
    plain: dict[str, Any] | None
    problems: list[str]

    @property
    def is_present(self) -> bool:
        """Whether the stage has left its result."""
        return self.plain is not None

    def value(self, kind: type | tuple[type, ...], *keys: str) -> Any:
        """Return the value below these keys if it has this type; null and absent give None."""
        found: Any = self.plain
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None or (isinstance(found, kind) and not _is_odd(found, kind)):
            return found
        self.problems.append(f"{self.where}: {'.'.join(keys)} has the wrong type.")
        return None

    def number(self, *keys: str) -> float | None:
        """Return a finite number, or None."""
        return _finite(self.value((int, float), *keys))

    def text(self, *keys: str) -> str | None:
        """Return a string, or None."""
        found = self.value(str, *keys)
        return str(found) if found is not None else None

    def numbers(self, *keys: str) -> dict[str, float | None]:
        """Return a mapping of names to numbers; anything else in it is None, and is named."""
        return {name: self.number(*keys, name) for name in self.value(dict, *keys) or {}}

    def items(self, *keys: str) -> list[Any]:
        """Return a list, empty if absent."""
        return list(self.value(list, *keys) or [])


def _is_odd(value: Any, kind: type | tuple[type, ...]) -> bool:
    """True is an int for Python, but never a measurement."""
    return isinstance(value, bool) and kind == (int, float)


def is_number(value: Any) -> bool:
    """Return whether a value of a document is a finite number."""
    return _finite(value) is not None


def _finite(value: Any) -> float | None:
    """Return a number as float; None for anything else, and for what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_document(path: Path, where: str, problems: list[str]) -> Document:
    """Read a result file; a damaged one is named among the problems."""
    try:
        return Document(where, read_result(path), problems)
    except (ArtifactError, RecursionError) as error:
        problems.append(f"{where} is damaged: {first_line(error)}")
        return Document(where, None, problems)


def first_line(error: BaseException) -> str:
    """Return the message of an error without its hint."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class LogLine:
    """One line of a log: its epoch or step, and numbers; what was not measured is None."""

    place: float
    values: dict[str, float | None] = field(default_factory=dict)


def read_lines(path: Path, key: str, names: Sequence[str], problems: list[str]) -> list[LogLine]:
    """Return the lines of a log in order of `key`; of those that are repeated the last counts."""
    try:
        texts = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
        return []
    lines: dict[float, LogLine] = {}
    for number, text in enumerate(texts, start=1):
        try:
            plain = msgspec.json.decode(text) if text.strip() else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            plain = None
        document = Document(f"{path.name}, line {number}", plain, problems)
        if not isinstance(plain, dict):
            problems.append(f"{path.name}, line {number} is damaged.")
        elif (place := document.number(key)) is not None:
            lines[place] = LogLine(place, {name: document.number(name) for name in names})
    return [lines[place] for place in sorted(lines)]
