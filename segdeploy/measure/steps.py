"""Where a history of measurements changed its level for good, and by how much.

A history is taken as piecewise constant. The levels are found by optimal partitioning (Jackson et
al., "An algorithm for optimal partitioning of data on an interval", IEEE SPL 12, 2005; PELT of
Killick et al., JASA 107, 2012, is its pruned form, and histories are short enough without) of the
logarithms, so that a step is a factor. A segment costs the sum of absolute distances to its median,
as asv's step detection does: one wild run moves no median, and a segment has at least three
entries, so that it is no level of its own either. Hence a step shows by its third entry.

Distances are in units of the noise, which is taken from the differences of neighbours: a step
changes one of them only. What a further step must save, `penalty`, was set by simulation, so that
at most one stationary history of 200 has a step, whether its noise is normal, Laplace or Student's
t with 3 degrees of freedom (`tests/measure/test_steps.py` counts them).

Trap: noise that wanders (an hour of a busy neighbour) looks like steps; no method without a second
machine can tell. Sources of that kind are why a gate measures both sides now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LEAST_SEGMENT = 3
LEAST_HISTORY = 2 * LEAST_SEGMENT
LONGEST_HISTORY = 400  # The work grows with its square; 400 entries take about a second.
LEAST_CHANGE = 0.01  # Below one percent a step is of no use to anybody.
_LEAST_NOISE = 1e-3  # Of the logarithm: clocks that repeat to the digit are not that good.
_NORMAL_MAD = 0.6745
_PLAUSIBLE = 3.0  # In log-likelihood: places this much worse than the best one stay possible.


@dataclass(frozen=True)
class Step:
    """A change of level: from `before` to `after`, in the unit of the history.

    `place` is the index of the first entry at the new level, as far as the noise lets it be known:
    it lies in `first`..`last`.
    """

    place: int
    first: int
    last: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """`after` / `before`."""
        return self.after / self.before


def find_steps(values: Sequence[float], least_change: float = LEAST_CHANGE) -> list[Step]:
    """Return the steps of a history of positive numbers, in order; none if it is too short.

    Args:
        values: Oldest first; of more than `LONGEST_HISTORY` the newest are taken.
        least_change: Smaller steps (0.01 = 1 %) are not told.
    """
    skipped = max(0, len(values) - LONGEST_HISTORY)
    logs = np.log(np.asarray(values[skipped:], np.float64))
    if len(logs) < LEAST_HISTORY:
        return []
    costs = segment_costs(logs) / noise_of(logs)
    ends = partition(costs, penalty(len(logs)))
    edges = [0, *ends]
    steps = []
    for start, place, end in zip(edges, edges[1:], edges[2:], strict=False):
        before, after = (
            float(np.exp(np.median(logs[low:high]))) for low, high in ((start, place), (place, end))
        )
        if abs(after / before - 1) >= least_change:
            first, last = _plausible_places(costs, start, place, end)
            steps.append(Step(place + skipped, first + skipped, last + skipped, before, after))
    return steps


def levels(values: Sequence[float], steps: Sequence[Step]) -> list[float]:
    """Return the level that each entry belongs to, in the unit of the history."""
    edges = [0, *(step.place for step in steps), len(values)]
    found: list[float] = []
    for start, end in pairwise(edges):
        found += [float(np.median(values[start:end]))] * (end - start)
    return found


def noise_of(logs: NDArray[np.float64]) -> float:
    """Return the noise's standard deviation, were it normal, from differences of neighbours."""
    spread = float(np.median(np.abs(np.diff(logs)))) / (_NORMAL_MAD * math.sqrt(2))
    return max(spread, _LEAST_NOISE)


def segment_costs(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return costs (n + 1, n + 1): [s, t] is the sum of |x - median| over entries s..t-1."""
    count = len(logs)
    costs = np.zeros((count + 1, count + 1))
    for length in range(2, count + 1):
        windows = sliding_window_view(logs, length)
        distances = np.abs(windows - np.median(windows, axis=1, keepdims=True))
        costs[np.arange(count - length + 1), np.arange(length, count + 1)] = distances.sum(axis=1)
    return costs


def penalty(count: int) -> float:
    """Return what one more step must save, in units of the noise, in a history of so many entries.

    Stationary histories exceed 8 to 10 in one of 200 (6..200 entries, three kinds of noise); few
    entries tell their own noise badly, hence the second term.
    """
    return 9.0 + 20.0 / count


def partition(costs: NDArray[np.float64], per_step: float) -> list[int]:
    """Return the ends of the segments that make the sum of costs and penalties smallest.

    Args:
        costs: (n + 1, n + 1), of a segment s..t-1 at [s, t].
        per_step: The penalty.
    """
    count = len(costs) - 1
    best = np.full(count + 1, np.inf)
    best[0] = -per_step  # The first segment is no step.
    origin = np.zeros(count + 1, np.intp)
    for end in range(LEAST_SEGMENT, count + 1):
        totals = best[: end - LEAST_SEGMENT + 1] + costs[: end - LEAST_SEGMENT + 1, end] + per_step
        origin[end] = int(np.argmin(totals))
        best[end] = totals[origin[end]]
    ends = [count]
    while origin[ends[-1]]:
        ends.append(int(origin[ends[-1]]))
    return ends[::-1]


def _plausible_places(
    costs: NDArray[np.float64], start: int, place: int, end: int
) -> tuple[int, int]:
    """Return the first and last place that explain start..end nearly as well as the best one."""
    places = np.arange(start + 1, end)
    totals = costs[start, places] + costs[places, end]
    near = places[totals <= costs[start, place] + costs[place, end] + _PLAUSIBLE]
    return int(near.min()), int(near.max())
