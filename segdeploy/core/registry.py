"""One lazy, explicit table per kind of thing: `{"name": "package.module:OBJECT"}`.

Listing names imports nothing; `get` imports exactly one module. Third parties add entries through
Python entry points, so no decorator, folder scan or import side effect is needed. An unknown name
answers with the nearest known ones.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import metadata
from operator import attrgetter
from typing import Generic, TypeVar

from segdeploy.core.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to objects of type T, imported on first use.

    Args:
        kind: The word used in messages, e.g. "model".
        table: Name to `package.module:attribute`.
        entry_point_group: Where third parties may add entries; built-in names win.
    """

    def __init__(
        self, kind: str, table: Mapping[str, str], entry_point_group: str | None = None
    ) -> None:
        self.kind = kind
        self._builtin = dict(table)
        self._group = entry_point_group

    @cached_property
    def _table(self) -> dict[str, str]:
        if self._group is None:
            return self._builtin
        plugins = {e.name: e.value for e in metadata.entry_points(group=self._group)}
        return plugins | self._builtin

    def names(self) -> list[str]:
        """Return all known names, sorted; imports no entry."""
        return sorted(self._table)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def get(self, name: str) -> T:
        """Return the object behind `name`.

        Raises:
            UnknownNameError: If no entry has this name; the hint lists the nearest.
            ConfigError: If the entry (of a plug-in) cannot be imported.
        """
        if name not in self._table:
            raise self.unknown(name)
        module, _, attribute = self._table[name].partition(":")
        try:
            found: T = attrgetter(attribute.partition("[")[0].strip())(
                importlib.import_module(module.strip())
            )
        except Exception as error:
            if name in self._builtin:
                raise  # Ours: a missing extra is turned into a clear error by the caller.
            raise ConfigError(  # A plug-in is foreign code: any failure of its import is its own.
                f"The plug-in {self.kind} '{name}' ({self._table[name]}) cannot be loaded: "
                f"{type(error).__name__}: {error}",
                hint="Update or uninstall the package that brings it.",
            ) from error
        return found

    def unknown(self, name: str) -> UnknownNameError:
        """Return the error for an unknown name, with the nearest known names as its hint."""
        near = difflib.get_close_matches(name, self._table, n=3, cutoff=0.4)
        known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(self)}."
        plural = self.kind + ("es" if self.kind.endswith("s") else "s")
        return UnknownNameError(
            f"Unknown {self.kind} '{name}'.", hint=f"{known} See 'segdeploy list {plural}'."
        )
