"""The command line: one command = one file that parses, calls one function and renders."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from segdeploy.core.ending import end_process

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point of the `segdeploy` command."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)
        sys.unraisablehook = _keep_interrupt
        _open_streams()
        from segdeploy.cli import commands  # noqa: F401  registers every command
        from segdeploy.cli.app import run_app

        code = run_app()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # The work is done: only leaving is left.
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
    end_process(code)


def _open_streams() -> None:
    """Make the standard streams usable, whatever the caller did to them.

    A closed one (`2>&-`) is opened on nothing: else the next file that is opened, perhaps a
    checkpoint, would get its number and with it all that a runtime prints. Names of files may hold
    bytes that are no text: they are shown escaped.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number: this one.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C: temporary files are removed, children are ended."""
    raise KeyboardInterrupt


def _keep_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise an interrupt again, a moment later, that Python dropped because a finaliser ran."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(unraisable)
