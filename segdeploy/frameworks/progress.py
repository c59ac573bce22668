"""The door to rich's progress bar: one look for all stages, on stderr, silent under --quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = "SEGDEPLOY_QUIET"


def is_quiet() -> bool:
    """Return True if the user asked for no messages (`-q`)."""
    return bool(os.environ.get(QUIET))


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a bar for the block; the yielded function advances it by one.

    Nothing is shown where stderr is no terminal: a log file full of bars helps nobody.
    """
    from rich.console import Console
    from rich.progress import Progress

    hidden = is_quiet() or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
