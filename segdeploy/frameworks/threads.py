"""How many threads a runtime may use; most runtimes do not read OMP_NUM_THREADS themselves."""

from __future__ import annotations

import os

_VARIABLES = ("SEGDEPLOY_NUM_THREADS", "OMP_NUM_THREADS")


def num_threads() -> int | None:
    """Return the number that the environment asks for, ours first; None leaves it to the runtime.

    `bench` and `serve` set the variables of their child processes.
    """
    for variable in _VARIABLES:
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return None
