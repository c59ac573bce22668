"""What a foreign converter says goes into a log, not onto our stdout.

torch's exporters print, log and warn (of their own deprecations). stdout belongs to the one JSON
document; the log's tail goes into the BuildError when the conversion fails.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from segdeploy.core.child import is_child


@contextmanager
def captured_log(logger: str = "torch") -> Iterator[io.StringIO]:
    """Yield a buffer that receives prints, warnings and the logger's messages of the block.

    In a child process they reach its log as well, at once: a crash would take the buffer with it.
    """
    buffer = _Copied() if is_child() else io.StringIO()
    handler = logging.StreamHandler(buffer)
    root = logging.getLogger(logger)
    before, propagate = root.handlers, root.propagate
    root.handlers, root.propagate = [handler], False
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                with redirect_stdout(buffer), redirect_stderr(buffer):
                    yield buffer
            finally:
                buffer.write("".join(f"{w.category.__name__}: {w.message}\n" for w in said))
    finally:
        root.handlers, root.propagate = before, propagate


class _Copied(io.StringIO):
    def write(self, text: str, /) -> int:
        os.write(2, text.encode(errors="replace"))
        return super().write(text)


def tail(buffer: io.StringIO, num_characters: int = 2000) -> str:
    """Return the end of a captured log."""
    return buffer.getvalue()[-num_characters:].strip()
