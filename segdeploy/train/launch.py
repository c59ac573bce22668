"""Starting the ranks of `--nproc N` on this machine, and ending them together.

Each rank is `python -m segdeploy.train.worker` with the environment that torchrun would set. The
parent holds the lock of the run folder and watches: when one rank dies, the others get a moment to
notice by themselves (their collective fails), then are ended. Ranks do not hear Ctrl-C: the parent
asks them to stop, by STOP_SIGNAL, and they ask themselves when their stdin closes, for then the
parent and its lock are gone. A scheduler's SIGTERM or SIGUSR1 to the parent is as Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from segdeploy.core.errors import TrainError
from segdeploy.frameworks.interrupts import deaf_children
from segdeploy.train.config import TrainConfig

_POLL_S = 0.1
EXIT_INTERRUPTED = 130
STOP_SIGNAL = signal.SIGUSR1


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let the first signal of a scheduler raise KeyboardInterrupt; further ones change nothing."""
    asked: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise KeyboardInterrupt

    try:
        previous = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # Not the main thread: whoever runs us handles signals.
        previous = {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@_signals_interrupt()
def launch_ranks(config: TrainConfig, *, resume: bool) -> None:
    """Run all ranks of `config` and wait for them.

    Raises:
        TrainError: If a rank fails; names it and its exit code.
        KeyboardInterrupt: If the ranks stopped because of Ctrl-C; RUN/last is complete.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        _start(ranks, config, resume=resume)
        codes = _watch(ranks, grace_s=min(config.timeout_s, 30.0) + 10)
    except KeyboardInterrupt:
        for rank in ranks:
            rank.send_signal(STOP_SIGNAL)  # They save RUN/last.
        codes = _finish(ranks, config.timeout_s)
        raise
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
            if rank.stdin is not None:
                rank.stdin.close()
    if EXIT_INTERRUPTED in codes:
        raise KeyboardInterrupt
    failed = {i: code for i, code in enumerate(codes) if code != 0}
    if failed:
        raise TrainError(
            "Training stopped: "
            + ", ".join(f"rank {i} {_meaning(code)}" for i, code in failed.items())
            + ".",
            hint="The first error above says why. If the run had finished an epoch, go on with "
            "--resume.",
        )


def _meaning(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _start(ranks: list[subprocess.Popen[bytes]], config: TrainConfig, *, resume: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // config.nproc)
    settings = msgspec.json.encode({"config": config, "resume": resume}).decode()
    for rank in range(config.nproc):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")} | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(config.nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        env.setdefault("OMP_NUM_THREADS", str(threads))
        command = [sys.executable, "-m", "segdeploy.train.worker", settings]
        with deaf_children():
            # Their stdout is our stderr: ours is for the result.
            ranks.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=2))


def _watch(ranks: list[subprocess.Popen[bytes]], grace_s: float) -> list[int]:
    """Wait until all ranks ended; after a first failure the others have `grace_s` seconds."""
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        has_failed = any(rank.poll() not in (None, 0) for rank in ranks)
        if has_failed and deadline is None:
            deadline = time.monotonic() + grace_s
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return _finish(ranks, 5.0)


def _finish(ranks: list[subprocess.Popen[bytes]], wait_s: float) -> list[int]:
    deadline = time.monotonic() + wait_s
    codes = []
    for rank in ranks:
        try:
            codes.append(rank.wait(timeout=max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            rank.kill()
            codes.append(rank.wait())
    return codes
