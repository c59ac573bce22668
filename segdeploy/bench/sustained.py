"""Sustained load: is the last minute as fast as the first? Fans, heat and power limits answer.

Each artifact runs on its own, without a pause: interleaving would let the machine cool. What is
kept is one row a second (the samples of ten minutes would be millions). Ctrl-C ends the run and
keeps what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np

from segdeploy.bench.entry import Entry
from segdeploy.bench.plan import BenchPlan
from segdeploy.measure.machine_state import throttle_count

CHUNK_S = 1.0
WINDOW_S = 60.0
THROTTLED = 0.05
"""A slowdown that repeated runs of one artifact do not reach on their own."""

Row = tuple[float, float, float, int]
"""Seconds since the start, p50 and p90 in ms, number of calls."""


def run_sustained(entry: Entry, plan: BenchPlan) -> None:
    """Run without a pause for the plan's time, row by row."""
    start, before = monotonic(), throttle_count()
    try:  # The peak first: Ctrl-C ends the process, which cannot be asked then.
        entry.launches[-1].finished = entry.ask("note_peak")
        while (passed := monotonic() - start) < plan.sustained_s:
            seconds = min(CHUNK_S, plan.sustained_s - passed)
            samples = entry.ask("sample", seconds=seconds)["samples_ms"]
            entry.sustained.append(summary(passed, samples))
            entry.sustained_s = monotonic() - start
    except KeyboardInterrupt:
        entry.is_interrupted = True
        entry.stop()  # Its answer would be taken for that of the next request.
    after = throttle_count()
    entry.num_throttled = None if before is None or after is None else after - before


def summary(start_s: float, samples: Sequence[float]) -> Row:
    """Return the row of one chunk."""
    return start_s, float(np.median(samples)), float(np.percentile(samples, 90)), len(samples)


def compare_ends(
    rows: Sequence[Row],
    seconds: float,
    *,
    is_interrupted: bool = False,
    num_throttled: float | None = None,
) -> dict[str, Any] | None:
    """Return the first window against the last; None without rows.

    A window is a minute, or half of a shorter run. `is_slower`: the last window is 5 % slower, and
    slower than nine in ten seconds of the first. `is_throttled`: the kernel counted it; None where
    it does not count.

    Args:
        rows: In order.
        seconds: From the start to the end of the last row.
        is_interrupted: Whether Ctrl-C ended it.
        num_throttled: What the kernel counted meanwhile, if it counts.
    """
    if not rows:
        return None
    window = min(WINDOW_S, seconds / 2)
    first = [p50 for start, p50, _, _ in rows if start < window]
    last = [p50 for start, p50, _, _ in rows if start >= seconds - window] or [rows[-1][1]]
    begin, end = float(np.median(first)), float(np.median(last))
    is_slower = end > max((1 + THROTTLED) * begin, float(np.percentile(first, 90)))
    return {
        "seconds": seconds,
        "window_s": window,
        "first_p50_ms": begin,
        "last_p50_ms": end,
        "ratio": end / begin if begin else None,
        "num_throttled": num_throttled,
        "is_slower": is_slower,
        "is_throttled": None if num_throttled is None else num_throttled > 0,
        "is_interrupted": is_interrupted,
        "rows": [list(row) for row in rows],
    }
