"""The door to signals: who hears Ctrl-C, and when.

A terminal sends it to all processes at once; only the parent shall act, and tell its children. And
compiled packages do not survive it everywhere: an interrupt while torch is imported aborts the
process, or is swallowed by an `except` of the package.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started in the block never hear Ctrl-C; this one hears it after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def postponed_interrupts() -> Iterator[None]:
    """Let the block finish; what arrives meanwhile is handled after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals are the main thread's.
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    kept = [s for s in _SIGNALS if callable(signal.getsignal(s))]  # Those that are acted upon.
    previous = {s: signal.signal(s, note) for s in kept}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
    for number in dict.fromkeys(arrived):
        signal.raise_signal(number)
