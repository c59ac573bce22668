"""The one clock: every runtime is timed by the same few lines, so that numbers compare.

Warm-up goes by time, not by count: caches, thread pools and CPU frequency settle in seconds, not
in calls. A sample is one call (one batch) that returns when its outputs are there; samples are
kept raw. `perf_counter_ns` is CLOCK_MONOTONIC on Linux: processes of one machine share it, so that
the starts of samples of several workers can be put in one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns

_NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


@dataclass
class Samples:
    """Start (ns on the shared clock) and duration (ms) of each call."""

    starts_ns: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


def warm_up(call: Callable[[], object], seconds: float) -> int:
    """Call for at least `seconds`, and once in any case; return the number of calls."""
    return len(sample_ms(call, seconds))


def sample_ms(
    call: Callable[[], object], seconds: float, *, at_least: int = 1, at_most: int | None = None
) -> list[float]:
    """Return the duration of each call in ms, for at least `seconds` and `at_least` calls.

    Args:
        call: Runs once and waits for its result.
        seconds: No call is started after this time, once there are enough.
        at_least: Number of samples that are taken whatever the time.
        at_most: Number of samples after which to stop; None for no limit.
    """
    return sample_calls(call, seconds, at_least=at_least, at_most=at_most).ms


def sample_calls(
    call: Callable[[], object],
    seconds: float,
    *,
    at_least: int = 1,
    at_most: int | None = None,
    clock: Callable[[], int] = perf_counter_ns,
    after: Callable[[], None] | None = None,
) -> Samples:
    """As `sample_ms`, with the time at which each call began.

    Args:
        call: Runs once and waits for its result.
        seconds: No call is started after this time, once there are enough.
        at_least: Number of samples that are taken whatever the time.
        at_most: Number of samples after which to stop; None for no limit.
        clock: Nanoseconds; another one in tests.
        after: Called after each sample, outside its time.
    """
    found = Samples()
    end = clock() + round(seconds * NS_PER_S)
    while at_most is None or len(found.ms) < at_most:
        start = clock()
        if start >= end and len(found.ms) >= at_least:
            break
        call()
        found.ms.append((clock() - start) / _NS_PER_MS)
        found.starts_ns.append(start)
        if after is not None:
            after()
    return found
