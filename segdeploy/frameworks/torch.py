"""The door to torch: absent, it is a BackendUnavailableError with the install line."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from segdeploy.core.errors import BackendUnavailableError
from segdeploy.frameworks.interrupts import postponed_interrupts


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


@contextmanager
def passive_waiting() -> Iterator[None]:
    """OpenMP threads that are loaded in the block sleep while they wait, instead of spinning.

    Beside loader processes on few cores, spinning threads steal the time that they wait for: one
    epoch in five took seven times as long (2 cores, 2 loader processes). It acts only if torch is
    first imported in the block; child processes do not inherit it.
    """
    name = "OMP_WAIT_POLICY"
    is_ours = name not in os.environ
    os.environ.setdefault(name, "PASSIVE")
    try:
        yield
    finally:
        if is_ours:
            del os.environ[name]


def require_onnx() -> None:
    """Check, without importing anything, that onnx is installed.

    Raises:
        BackendUnavailableError: If it is not.
    """
    if importlib.util.find_spec("onnx") is None:
        raise BackendUnavailableError(
            "This needs onnx, which is not installed.",
            hint="Install it: pip install 'segdeploy[torch]'",
        )


def require_torch(*others: str) -> ModuleType:
    """Import and return torch; else as `find_torch`."""
    find_torch(*others)
    with postponed_interrupts():
        import torch

    return torch
