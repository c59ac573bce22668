"""The door to a runtime's package: looked for without an import, imported with a clear error."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from segdeploy.core.errors import BackendUnavailableError
from segdeploy.frameworks.interrupts import postponed_interrupts


def find_packages(extra: str, *names: str) -> None:
    """Check, without importing anything, that the packages of an extra are installed.

    Raises:
        BackendUnavailableError: If one is not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise BackendUnavailableError(
            f"This needs {' and '.join(missing)}, which {verb} not installed.",
            hint=f"Install it: pip install 'segdeploy[{extra}]'",
        )


def import_package(extra: str, name: str, module: str = "") -> ModuleType:
    """Import a package of an extra, or a module of it, and return that.

    Raises:
        BackendUnavailableError: If it is not installed or cannot be loaded.
    """
    if (found := sys.modules.get(module or name)) is not None:
        return found  # Sessions ask in every call.
    find_packages(extra, name)
    try:
        with postponed_interrupts():
            return importlib.import_module(module or name)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{name} is installed but cannot be loaded: {error}",
            hint=f"Install it again: pip install --force-reinstall {name}",
        ) from error
