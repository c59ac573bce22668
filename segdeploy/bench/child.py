"""The parent's end of a bench worker: start, ask with a time limit, stop.

A worker that dies, hangs or talks nonsense ends as an ArtifactError that names the artifact and
quotes the end of the worker's log; the other workers are not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Self

from segdeploy.core import errors
from segdeploy.core.errors import ArtifactError, SegDeployError

_LOG_LINES, _LOG_BYTES = 12, 4000
# All of them are set, since each runtime reads another.
_THREAD_VARIABLES = (
    "SEGDEPLOY_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
)  # fmt: skip


class Child:
    """A worker process for one artifact.

    Args:
        path: The artifact; only names it in errors.
        threads: How many each runtime may use.
        limit_s: Longest time one answer may take, in seconds.
    """

    def __init__(self, path: Path, threads: int, limit_s: float) -> None:
        self.path = path
        self._limit_s = limit_s
        self._buffer = b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in `stop`
        self._answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "segdeploy.bench.worker", str(theirs)],
                stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT,
                pass_fds=(theirs,), env=_environment(threads),
            )  # fmt: skip
        except BaseException:
            os.close(self._answers)
            self._log.close()
            raise
        finally:
            os.close(theirs)
        if self._process.stdin is None:
            raise RuntimeError("a worker without stdin")  # Cannot be: it was asked for above.
        self._stdin = self._process.stdin

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            ArtifactError: If the worker died, hung or answered nonsense.
            SegDeployError: What the worker itself raised, with its own type.
        """
        request = json.dumps({"do": do, **details}).encode() + b"\n"
        try:
            self._stdin.write(request)
            self._stdin.flush()
            answer = json.loads(self._read_line())
        except (BrokenPipeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self._failure(f"its process {self._how_it_ended()}") from error
        if "error" in answer:
            raise _rebuild_error(answer["error"], self.path)
        found: dict[str, Any] = answer
        return found

    def _read_line(self) -> bytes:
        end = monotonic() + self._limit_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - monotonic()))
            if not ready:
                self._kill()
                raise self._failure(f"it gave no answer within {self._limit_s:g} s and was stopped")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise BrokenPipeError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._kill()
            return "gave an unreadable answer"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def _failure(self, what: str) -> ArtifactError:
        tail = self._log_tail()
        return ArtifactError(
            f"{self.path} could not be benchmarked: {what}.",
            hint=f"The end of its log:\n{tail}"
            if tail
            else "It wrote no log; memory may be short.",
        )

    def _log_tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the worker, whatever state it is in."""
        if self._process.poll() is None:
            self._kill()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        if not self._log.closed:
            os.close(self._answers)
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _environment(threads: int) -> dict[str, str]:
    """Return this process's environment, with the threads, and with the same modules in reach."""
    reach = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {
        **os.environ,
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": reach,
        "PYTHONUNBUFFERED": "1",
    }


def _rebuild_error(plain: Mapping[str, str], path: Path) -> SegDeployError:
    """Return the worker's error with its own type; its message names the artifact."""
    kind = getattr(errors, plain["kind"], SegDeployError)
    error: SegDeployError = kind(f"{path}: {plain['message']}", hint=plain["hint"])
    return error
