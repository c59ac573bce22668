"""How a process ends: as Python does it, or at once where threads of a library outlive the work.

A thread that asks for the GIL while Python takes itself down is ended in the middle of C++ code,
which aborts the process: a rank that has done its work would end with SIGABRT. Whoever leaves such
threads behind calls `end_at_once`; what ends a process calls `end_process`.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

_has_threads = False


def end_at_once() -> None:
    """Let this process end without taking Python down; exit functions run, streams are flushed."""
    global _has_threads  # noqa: PLW0603  a fact about the process, not about an object
    _has_threads = True


def end_process(code: int) -> NoReturn:
    """End with this exit code."""
    if not _has_threads:
        sys.exit(code)
    atexit._run_exitfuncs()  # noqa: SLF001  What Python itself would call first.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # A closed pipe, a closed stream.
            stream.flush()
    os._exit(code)
