"""The one clock: every runtime is timed by the same few lines, so that numbers compare.

Warm-up goes by time, not by count: caches, thread pools and CPU frequency settle in seconds, not
in calls. A sample is one call (one batch) that returns when its outputs are there; samples are
kept raw.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


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
    samples: list[float] = []
    end = perf_counter_ns() + round(seconds * _NS_PER_S)
    while at_most is None or len(samples) < at_most:
        start = perf_counter_ns()
        if start >= end and len(samples) >= at_least:
            break
        call()
        samples.append((perf_counter_ns() - start) / _NS_PER_MS)
    return samples
