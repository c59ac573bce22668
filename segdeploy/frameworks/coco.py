"""The door to pycocotools: absent, it is a BackendUnavailableError with the install line."""

from __future__ import annotations

import importlib.util

from segdeploy.core.errors import BackendUnavailableError


def find_coco(*others: str) -> None:
    """Check, without importing anything, that pycocotools is installed.

    Args:
        others: Further packages of the `coco` extra that must be present.

    Raises:
        BackendUnavailableError: If one of them is not installed.
    """
    for name in ("pycocotools", *others):
        if importlib.util.find_spec(name) is None:
            raise BackendUnavailableError(
                f"This needs {name}, which is not installed.",
                hint="Install it: pip install 'segdeploy[coco]'",
            )
