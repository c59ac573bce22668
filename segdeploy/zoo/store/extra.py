"""The door to the packages of the extra `zoo`; the rest of segdeploy does without them."""

from __future__ import annotations

import importlib
from types import ModuleType

from segdeploy.core.errors import BackendUnavailableError


def require_zoo(package: str, purpose: str) -> ModuleType:
    """Import and return a package.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{purpose} needs {package}, which is not installed.",
            hint="Install it: pip install 'segdeploy[zoo]'",
        ) from error
