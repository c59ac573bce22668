"""What `tune` keeps: pure functions of measured ratios and flips.

A ratio is that of two artifacts in blocks that ran in turn, so that the machine's drift cancels;
a block counts by its fastest call, which others on the machine disturb least.
Its interval is made of order statistics of the blocks' ratios: it holds for any distribution of the
noise, and one disturbed block does not move it (sign test; Conover 1999, 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segdeploy.core.results import BenchResult

LEVEL = 0.95
LEAST_GAIN = 0.01
"""A change must be faster by this share at least: less is not worth another policy."""


@dataclass(frozen=True)
class Ratio:
    """Time of a candidate over that of the best so far: the median of blocks and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """What verify found: rates are shares of pixels in [0, 1]."""

    passed: bool
    flip_rate: float
    hard_flip_rate: float


@dataclass(frozen=True)
class Decision:
    """Whether a change is kept, and why."""

    kept: bool
    reason: str


def least_of_blocks(result: BenchResult) -> list[float]:
    """Return the least of every block in ms, in their order: what the work costs undisturbed."""
    samples = iter(result.samples_ms)
    sizes = result.environment["block_sizes"]
    return [min(next(samples) for _ in range(size)) for size in sizes if size]


def ratio_of_blocks(best_ms: Sequence[float], candidate_ms: Sequence[float]) -> Ratio:
    """Return the ratio of block latencies that were measured in turn, in the same order.

    With fewer than six blocks no interval holds `LEVEL`: it is then (0, inf).

    Raises:
        ValueError: If the numbers of blocks differ, or there is none.
    """
    ratios = sorted(c / b for b, c in zip(best_ms, candidate_ms, strict=True))
    if not ratios:
        raise ValueError("no blocks")
    count = len(ratios)
    middle = (ratios[(count - 1) // 2] + ratios[count // 2]) / 2
    rank = _rank(count)
    if rank is None:
        return Ratio(middle, 0.0, math.inf)
    return Ratio(middle, ratios[rank], ratios[count - 1 - rank])


def _rank(count: int) -> int | None:
    """Return the largest index i whose order statistics i and n-1-i hold the median at LEVEL."""
    chance, found = 0.0, None
    for index in range((count + 1) // 2):
        chance += math.comb(count, index) / 2**count
        if 2 * chance > 1 - LEVEL:
            break
        found = index
    return found


def decide(best: Accuracy, candidate: Accuracy, ratio: Ratio) -> Decision:
    """Return whether a candidate replaces the best so far.

    One outside the limits of parity never replaces one within them, and one within them replaces
    one outside whatever it costs. Else it must be faster beyond the noise.
    """
    if not candidate.passed:
        return Decision(kept=False, reason="its flips break a limit of parity")
    if not best.passed:
        return Decision(kept=True, reason="within the limits of parity, which the best was not")
    if ratio.high < 1 and ratio.value <= 1 - LEAST_GAIN:
        return Decision(kept=True, reason="faster beyond the noise, within the limits of parity")
    if ratio.low > 1:
        return Decision(kept=False, reason="slower beyond the noise")
    return Decision(kept=False, reason="no faster than the noise shows")
