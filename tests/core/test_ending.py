"""The end of a process whose libraries leave threads behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import atexit, sys
from segdeploy.core.ending import end_at_once, end_process
class Late:
    def __del__(self):
        sys.__stdout__.write("taken down\\n")
late = Late()
late.self = late  # Freed by the very last collection only.
atexit.register(print, "exit function")
print("work", end=" ")
if len(sys.argv) > 1:
    end_at_once()
end_process(7)
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], "work exit function\ntaken down\n"), (["now"], "work exit function\n")],
)
def test_exit_functions_run_and_python_is_taken_down_only_where_it_may(
    flags: list[str], expected: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *flags], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, expected, "")
