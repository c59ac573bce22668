"""Confidence intervals of percentiles without any assumption on the distribution.

The number of samples below the true p-quantile is binomial(n, p), whatever is sampled; so two order
statistics enclose it with a known probability (David and Nagaraja, Order Statistics, 3rd ed., 2003,
section 7.1). Latencies are skewed and have several modes: an interval from a standard deviation
would be wrong. The samples count as independent; neighbouring calls are not quite, and two launches
of one program differ by more than that: the interval is that of this run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def percentile_interval(
    samples: Sequence[float], percent: float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return an interval that holds the percentile with at least this confidence.

    None where the samples are too few: no order statistic lies far enough out.

    Args:
        samples: At least one.
        percent: Which percentile, in (0, 100).
        confidence: Of the interval, in (0, 1); each side misses at most half of the rest.
    """
    ranks = interval_ranks(len(samples), percent / 100, confidence)
    if ranks is None:
        return None
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    return float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])


def interval_ranks(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Return the ranks (1..n) of the two order statistics, or None if n is too small."""
    if n < 1:
        return None
    counts = np.arange(1, n + 1)
    steps = np.log((n - counts + 1) / counts) + math.log(p) - math.log1p(-p)
    mass = np.exp(n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)]))
    below = np.cumsum(mass)  # below[k] = P(at most k samples lie below the quantile).
    tail = (1 - confidence) / 2
    # x_(r) > quantile means that fewer than r samples lie below it.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= n else None
