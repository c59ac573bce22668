"""A child process: what it answers, how it fails, and that nothing of it is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from segdeploy.core.child import (
    Array,
    Child,
    ChildFailedError,
    child_environment,
)
from segdeploy.core.errors import BuildError, ConfigError
from segdeploy.core.session_memory import session_memory_mib

WORKER = """
import ctypes, os, signal, subprocess, sys, time
import numpy as np
from segdeploy.core.child import Worker
from segdeploy.core.errors import BuildError, ConfigError

class Planted(Worker):
    def double(self, request, arrays):
        return {"seen": request["word"]}, [2 * array for array in arrays]
    def refuse(self, request, arrays):
        raise ConfigError("too far", hint="go home")
    def fail(self, request, arrays):
        raise BuildError("broke", log="line of a log")
    def segv(self, request, arrays):
        print("the last words of a converter", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    def abort(self, request, arrays):
        ctypes.CDLL(None).abort()
    def exit(self, request, arrays):
        os._exit(3)
    def crash(self, request, arrays):
        raise RuntimeError("a bug of the converter")
    def sleep(self, request, arrays):
        self.other = subprocess.Popen(["sleep", "600"])
        print(self.other.pid, flush=True)
        time.sleep(600)
    def allocate(self, request, arrays):
        kept = []
        while True:
            kept.append(np.ones(2**22))
    def allocate_below(self, request, arrays):
        subprocess.run([sys.executable, "-c", "kept = [bytearray(2**20 * 32) for _ in range(99)]"])
        return {}, []
    def scratch(self, request, arrays):
        import tempfile
        name = tempfile.mkdtemp()
        open(name + "/left", "w").close()
        return {"name": name}, []

Planted().serve()
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "planted_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Child("planted_worker", environment=child_environment(), memory_mib=600) as started:
        yield started


def test_arrays_travel_both_ways(child: Child) -> None:
    given: list[Array] = [
        np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        np.zeros((0, 4), np.uint8),
    ]
    answer, found = child.ask({"do": "double", "word": "café\n"}, given, limit_s=30)
    assert answer == {"seen": "café\n"}
    for before, after in zip(given, found, strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, 2 * before)


def test_its_own_errors_travel_with_their_type_and_it_lives_on(child: Child) -> None:
    with pytest.raises(ConfigError, match="too far") as refused:
        child.ask({"do": "refuse"}, limit_s=30)
    assert refused.value.hint == "go home"
    with pytest.raises(BuildError, match="broke") as failed:
        child.ask({"do": "fail"}, limit_s=30)
    assert failed.value.log == "line of a log"
    assert child.ask({"do": "double", "word": ""}, limit_s=30)[0] == {"seen": ""}


@pytest.mark.parametrize(
    ("do", "reason", "log"),
    [
        ("segv", "was killed by SIGSEGV", "the last words of a converter"),
        ("abort", "was killed by SIGABRT", ""),
        ("exit", "ended with exit code 3", ""),
        ("crash", "ended with exit code 1", "RuntimeError: a bug of the converter"),
    ],
)
def test_a_crash_is_an_error_with_the_tail_of_the_log(
    child: Child, do: str, reason: str, log: str
) -> None:
    with pytest.raises(ChildFailedError) as caught:
        child.ask({"do": do}, limit_s=30)
    assert caught.value.reason == reason
    assert log in caught.value.log


def test_an_endless_loop_is_stopped_with_all_that_it_started(child: Child) -> None:
    child.ask({"do": "double", "word": ""}, limit_s=60)  # Its start is over.
    start = time.monotonic()
    with pytest.raises(ChildFailedError, match=r"no answer within 1.5 s, its limit") as caught:
        child.ask({"do": "sleep"}, limit_s=1.5)
    assert time.monotonic() - start < 30
    started = int(caught.value.log.split()[-1])
    end = time.monotonic() + 10  # The kernel ends a killed process when it comes to it.
    while _lives(started) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(started)


class _Interrupt(BaseException):
    pass


def _interrupt(*_: object) -> None:
    raise _Interrupt


def test_an_interrupted_question_is_not_answered_by_the_next_one(child: Child) -> None:
    previous = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(_Interrupt):
            child.ask({"do": "sleep"}, limit_s=60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    with pytest.raises(ValueError, match="closed"):
        child.ask({"do": "double", "word": "ab"}, limit_s=60)


def test_it_answers_a_process_that_has_a_thousand_files_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with (
            Child("segdeploy.backends.worker") as child,
            pytest.raises(ChildFailedError, match="exit code"),
        ):
            child.ask({"do": "no such thing"}, limit_s=60)
    finally:
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_request_that_is_not_read_has_a_limit_too(child: Child) -> None:
    child.ask({"do": "double", "word": ""}, limit_s=60)
    child.pause()
    with pytest.raises(ChildFailedError, match=r"no answer within 0.5 s, its limit"):
        child.ask({"do": "double", "word": ""}, [np.zeros(2**20, np.uint8)], limit_s=0.5)


@pytest.mark.parametrize("do", ["allocate", "allocate_below"])
def test_too_much_memory_is_an_error_that_names_the_limit(child: Child, do: str) -> None:
    """Also where a process that the child started takes it."""
    with pytest.raises(ChildFailedError, match="more than the limit of 600 MiB"):
        child.ask({"do": do}, limit_s=60)


def test_its_temporary_files_go_with_it(child: Child) -> None:
    name = child.ask({"do": "scratch"}, limit_s=30)[0]["name"]
    assert Path(name, "left").exists()
    child.stop()
    assert not Path(name).exists()
    child.stop()  # Twice is once.


def test_memory_is_that_of_the_whole_session() -> None:
    own = session_memory_mib(os.getsid(0))
    assert own is not None
    assert own > 20
    assert session_memory_mib(2**30) is None


def test_it_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "planted_worker.py").write_text(WORKER)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from segdeploy.core.child import Array, Child, child_environment\n"
        "child = Child('planted_worker', environment=child_environment())\n"
        "child.ask({'do': 'double', 'word': ''}, limit_s=30)\n"
        "print(child._process.pid, flush=True)\n"
        "child.ask({'do': 'sleep'}, limit_s=600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        started = int(parent.stdout.readline())
        assert _lives(started)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 20
    while _lives(started) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(started)


def _lives(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
