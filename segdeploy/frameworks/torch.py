"""The door to torch: absent, it is a BackendUnavailableError with the install line."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from segdeploy.core.errors import BackendUnavailableError


def find_torch(*others: str) -> None:
    """Check, without importing anything, that torch is installed.

    Args:
        others: Further packages of the `torch` extra that must be present.

    Raises:
        BackendUnavailableError: If one of them is not installed.
    """
    for name in ("torch", *others):
        if importlib.util.find_spec(name) is None:
            raise BackendUnavailableError(
                f"This needs {name}, which is not installed.",
                hint="Install it: pip install 'segdeploy[torch]'",
            )


def require_torch(*others: str) -> ModuleType:
    """Import and return torch; else as `find_torch`."""
    find_torch(*others)
    import torch

    return torch
