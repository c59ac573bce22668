"""The door to TensorBoard: absent, it is a BackendUnavailableError with the install line."""

from __future__ import annotations

import importlib.util

from segdeploy.core.errors import BackendUnavailableError


def find_tensorboard() -> None:
    """Check, without importing anything, that tensorboard is installed.

    Raises:
        BackendUnavailableError: If it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise BackendUnavailableError(
            "This needs tensorboard, which is not installed.",
            hint="Install it: pip install 'segdeploy[tensorboard]'; or leave --tensorboard out.",
        )
