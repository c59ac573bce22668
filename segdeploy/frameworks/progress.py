"""The door to rich's progress bars: one look for all stages, on stderr, silent under --quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segdeploy.frameworks.launch_env import is_main_process

QUIET = "SEGDEPLOY_QUIET"

Advance = Callable[[str, float, float | None], None]
"""Told what is being done, how much of it is done, and how much there is (None: unknown)."""


def is_quiet() -> bool:
    """Return True if the user asked for no messages (`-q`)."""
    return bool(os.environ.get(QUIET))


@contextmanager
def progress_bars() -> Iterator[Advance]:
    """Show one bar for each kind of work that the yielded function is told of.

    Nothing is shown where stderr is no terminal (a log file full of bars helps nobody), under
    --quiet, and on all ranks of a distributed run but the first.
    """
    from rich.console import Console
    from rich.progress import Progress, TaskID

    is_hidden = is_quiet() or not sys.stderr.isatty() or not is_main_process(os.environ)
    with Progress(console=Console(stderr=True), disable=is_hidden, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: float, total: float | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
