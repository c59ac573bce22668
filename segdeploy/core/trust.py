"""Whose code may run. Only models of one's own, `package.module:callable`, are code.

A name that the user typed is consent to import it. A name that a file brought (a manifest, a
recipe) is not: it is refused before anything is imported, unless the process was given permission
by `--allow-code` or SEGDEPLOY_ALLOW_CODE=1. The permission lives in the environment, so that child
processes have it too. Models of the zoo and of installed plug-ins need none.
"""

from __future__ import annotations

import os
import re
from typing import Final

from segdeploy.core.errors import CheckpointError

ALLOW_CODE: Final = "SEGDEPLOY_ALLOW_CODE"
_CALLABLE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def allow_code() -> None:
    """Let this process and its children import models that a file names."""
    os.environ[ALLOW_CODE] = "1"


def is_code_allowed() -> bool:
    """Return whether models that a file names may be imported."""
    return os.environ.get(ALLOW_CODE, "") not in {"", "0"}


def is_callable_name(model: str) -> bool:
    """Return whether a model's name is `package.module:callable`."""
    return _CALLABLE.fullmatch(model) is not None


def check_trusted(model: str, found_in: object) -> None:
    """Check that the model which a file names may be built; imports nothing.

    Raises:
        CheckpointError: If it is code and there is no permission.
    """
    if is_callable_name(model) and not is_code_allowed():
        raise CheckpointError(
            f"{found_in} names the model {model}: to open it, its code would be imported.",
            hint="If you trust it, give --allow-code (or set SEGDEPLOY_ALLOW_CODE=1).",
        )
