"""A child process for foreign code: a crash, an endless loop or a leak ends the child only.

The parent asks, the child answers: one JSON document a line, followed by the bytes of any arrays
that it announces. What the child prints is a log file of the parent's, so that nothing a library
says can break the protocol; its tail is in the error. Time and memory are limited from outside,
over the whole process tree (converters start compilers): whatever hangs cannot stop that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.core import errors
from segdeploy.core.errors import SegDeployError
from segdeploy.core.scratch import ScratchFolder
from segdeploy.core.session_memory import session_memory_mib

Array = NDArray[Any]

_LOG_LINES, _LOG_BYTES = 12, 4000
_PR_SET_PDEATHSIG = 1  # prctl(2)
_STOP_LIMIT_S, _STOP_LOOK_S = 1.0, 0.0002
_LOOK_S = 0.2  # How often memory is looked at; at 2 GiB/s an overshoot of 400 MiB.


class ChildFailedError(Exception):
    """The child crashed, hung or hit a limit; `reason` follows "it ", `log` is its log's tail."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


class Child:
    """A process `python -m MODULE FD` in a session of its own, that `serve` answers for.

    Args:
        module: What it runs.
        python: The interpreter; another environment's if a library needs one.
        environment: Its variables, all of them; default: this process's.
        memory_mib: Most resident memory of it and its children together; None is no limit.
    """

    def __init__(
        self,
        module: str,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        memory_mib: float | None = None,
    ) -> None:
        self._memory_mib = memory_mib
        self._buffer = bytearray()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in `stop`
        self._scratch = ScratchFolder()
        self._answers, theirs = os.pipe()
        variables = os.environ if environment is None else environment
        try:
            self._process = subprocess.Popen(
                [python, "-P", "-m", module, str(theirs)],
                stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT,
                pass_fds=(theirs,), env={**variables, "TMPDIR": self._scratch.name},
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(self._answers)
            self._log.close()
            self._scratch.cleanup()
            raise
        finally:
            os.close(theirs)
        if self._process.stdin is None:
            raise RuntimeError("a child without stdin")  # Cannot be: it was asked for above.
        self._stdin: IO[bytes] = self._process.stdin
        os.set_blocking(self._stdin.fileno(), False)  # A child that reads nothing has a limit, too.

    def ask(
        self, request: Mapping[str, Any], arrays: Sequence[Array] = (), *, limit_s: float
    ) -> tuple[dict[str, Any], list[Array]]:
        """Return the answer to one request, with its arrays.

        Whatever else ends the wait, say Ctrl-C, ends the child: its answer would be taken for that
        of the next request.

        Raises:
            ChildFailedError: If the child ended, gave no answer within `limit_s` seconds, took too
                much memory, or answered nonsense.
            SegDeployError: What the child itself raised, with its own type.
        """
        end = monotonic() + limit_s
        try:
            self._send(request, arrays, end, limit_s)
            header = json.loads(self._read_line(end, limit_s))
            shapes = header.pop("arrays", [])
            found = [self._read_array(each, end, limit_s) for each in shapes]
        except (BrokenPipeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChildFailedError(self._how_it_ended(), self.log_tail()) from error
        except ChildFailedError:
            raise
        except BaseException:
            self.stop()
            raise
        if "error" in header:
            raise rebuild_error(header["error"])
        return header, found

    def _send(
        self, request: Mapping[str, Any], arrays: Sequence[Array], end: float, limit_s: float
    ) -> None:
        pipe = self._stdin.fileno()
        for part in _message_parts(request, arrays):
            left = memoryview(part)
            while left:
                self._wait([], [pipe], end, limit_s)
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(pipe, left) :]

    def _read_line(self, end: float, limit_s: float) -> bytes:
        while (length := self._buffer.find(b"\n")) < 0:
            self._receive(end, limit_s)
        return self._take(length + 1)

    def _read_array(self, plain: Mapping[str, Any], end: float, limit_s: float) -> Array:
        kind, shape = np.dtype(plain["dtype"]), tuple(plain["shape"])
        size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        while len(self._buffer) < size:
            self._receive(end, limit_s)
        return np.frombuffer(self._take(size), kind).reshape(shape)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _receive(self, end: float, limit_s: float) -> None:
        """Wait for more of an answer."""
        self._wait([self._answers], [], end, limit_s)
        part = os.read(self._answers, 1 << 20)
        if not part:
            raise BrokenPipeError
        self._buffer += part

    def _wait(self, to_read: list[int], to_write: list[int], end: float, limit_s: float) -> None:
        """Return when a pipe is ready; end the child where a limit is hit."""
        poll = select.poll()  # `select` refuses the files of a process that has a thousand open.
        for pipes, event in ((to_read, select.POLLIN), (to_write, select.POLLOUT)):
            for pipe in pipes:
                poll.register(pipe, event)
        while True:
            left = end - monotonic()
            if poll.poll(1000 * max(0.0, min(left, _LOOK_S))):
                return
            if left <= 0:
                self._kill()
                raise ChildFailedError(
                    f"gave no answer within {limit_s:g} s, its limit, and was stopped",
                    self.log_tail(),
                )
            self._check_memory()

    def _check_memory(self) -> None:
        if self._memory_mib is None:
            return
        used = session_memory_mib(self._process.pid)
        if used is not None and used > self._memory_mib:
            self._kill()
            raise ChildFailedError(
                f"took {used:.0f} MiB of memory, more than the limit of {self._memory_mib:.0f} "
                "MiB, and was stopped",
                self.log_tail(),
            )

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._kill()
            return "gave an unreadable answer"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        out_of_memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {name}{out_of_memory}"

    def log_tail(self) -> str:
        """Return the last lines of what the child printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the child's threads where they are, so that none spins beside another's work.

        Returns when they stand: on a busy machine that takes the time of a scheduler's turn.
        """
        self._signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):
            self._wait_until_stopped()

    def resume(self) -> None:
        """Let a paused child go on."""
        self._signal(signal.SIGCONT)

    def _wait_until_stopped(self) -> None:
        look = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        end = monotonic() + _STOP_LIMIT_S
        with contextlib.suppress(ChildProcessError):
            while os.waitid(os.P_PID, self._process.pid, look) is None and monotonic() < end:
                sleep(_STOP_LOOK_S)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """End the child and all that it started, whatever state they are in."""
        if self._log.closed:
            return
        self._kill()
        with contextlib.suppress(OSError):
            self._stdin.close()
        os.close(self._answers)
        self._log.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def child_environment(threads: int | None = None, python: str = sys.executable) -> dict[str, str]:
    """Return this process's variables for a child that runs `python`, with so many threads.

    The same interpreter finds the same modules; another environment must find none of ours.
    """
    variables = (
        "SEGDEPLOY_NUM_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    )  # fmt: skip  All of them, since each runtime reads another.
    chosen = {} if threads is None else dict.fromkeys(variables, str(threads))
    found = {**os.environ, **chosen, "PYTHONUNBUFFERED": "1"}
    found.pop("PYTHONPATH", None)
    if python == sys.executable:
        found["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return found


def write_message(stream: IO[bytes], header: Mapping[str, Any], arrays: Sequence[Array]) -> None:
    """Write one request or answer."""
    for part in _message_parts(header, arrays):
        stream.write(part)
    stream.flush()


def _message_parts(
    header: Mapping[str, Any], arrays: Sequence[Array]
) -> Iterator[bytes | memoryview]:
    shapes = [{"dtype": a.dtype.str, "shape": list(a.shape)} for a in arrays]
    yield json.dumps({**header, "arrays": shapes}).encode() + b"\n"
    for array in arrays:
        yield np.ascontiguousarray(array).data.cast("B") if array.size else b""


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], list[Array]] | None:
    """Return the next request; None at the end."""
    line = stream.readline()
    if not line:
        return None
    header: dict[str, Any] = json.loads(line)
    arrays = []
    for plain in header.pop("arrays", []):
        kind, shape = np.dtype(plain["dtype"]), tuple(plain["shape"])
        content = stream.read(kind.itemsize * int(np.prod(shape, dtype=np.int64)))
        arrays.append(np.frombuffer(content, kind).reshape(shape))
    return header, arrays


_is_child = False


def is_child() -> bool:
    """Return whether this process is such a child, whose standard error is a log."""
    return _is_child


class Worker:
    """Answers requests: the method named by `do` gets the request and its arrays."""

    def serve(self) -> None:
        """Answer the parent until it is gone; our own errors travel as data."""
        global _is_child  # noqa: PLW0603  a fact about the process
        _is_child = True
        requests, sys.stdin = sys.stdin.buffer, os.fdopen(os.open(os.devnull, 0))
        try:
            with os.fdopen(int(sys.argv[1]), "wb") as answers:
                _end_with(os.getppid())
                while (message := read_message(requests)) is not None:
                    write_message(answers, *self._answer(*message))
        except (KeyboardInterrupt, BrokenPipeError):
            os._exit(130)
        os._exit(0)  # Libraries of all kinds crash when Python takes itself down.

    def _answer(
        self, request: dict[str, Any], arrays: list[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        try:
            done: tuple[dict[str, Any], list[Array]] = getattr(self, request["do"])(request, arrays)
        except SegDeployError as error:
            plain = {
                "kind": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "log": getattr(error, "log", ""),
            }
            return {"error": plain}, []
        return done


def _end_with(parent: int) -> None:
    """End this process and what it started once the parent is gone, killed or not."""

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: a paused one watches nothing by itself.

    Only for a child whose starting thread waits for it: Linux means that thread by "parent".
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def rebuild_error(plain: Mapping[str, str]) -> SegDeployError:
    """Return the child's error with its own type."""
    kind = getattr(errors, plain["kind"], SegDeployError)
    error: SegDeployError = kind(plain["message"], hint=plain["hint"])
    if plain.get("log"):
        error.__dict__["log"] = plain["log"]
    return error
