"""Throughput: calls that run one after the other, or in several streams at a time.

Each stream is a session of its own, driven by a thread of its own; the threads of the runtime are
split among them. All begin together, after one call each that is thrown away.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from segdeploy.measure import sample_ms

Call = Callable[[], object]
THREADS = "SEGDEPLOY_NUM_THREADS"


def set_torch_threads(threads: int) -> None:
    """Set torch's own pool, if this artifact brought torch in: it may not follow the variable."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let the sessions that are opened meanwhile have so many threads."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def count_calls(call: Call, seconds: float) -> tuple[int, float]:
    """Return how many calls were made one after the other, and the time in seconds they took."""
    call()
    start = perf_counter()
    count = len(sample_ms(call, seconds))
    return count, perf_counter() - start


def count_stream_calls(
    calls: Sequence[Call],
    seconds: float,
    threads: int,
    *,
    clock: Callable[[], float] = perf_counter,
) -> tuple[int, float]:
    """Return how many calls all streams made, and the time from the first to the last of them.

    Args:
        calls: One per stream.
        seconds: No call is started after this time.
        threads: Of each stream.
        clock: Seconds; read by the streams alone, since this thread may wake up after they began.
    """
    counts, starts, ends = [0] * len(calls), [0.0] * len(calls), [0.0] * len(calls)
    errors: list[Exception] = []
    together = threading.Barrier(len(calls))

    def drive(index: int) -> None:
        try:
            set_torch_threads(threads)
            calls[index]()
            together.wait()
            starts[index] = clock()
            counts[index] = len(sample_ms(calls[index], seconds))
            ends[index] = clock()
        except Exception as error:  # noqa: BLE001  raised again where it can be seen
            errors.append(error)
            together.abort()

    streams = [threading.Thread(target=drive, args=(i,)) for i in range(len(calls))]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return sum(counts), max(ends) - min(starts)
