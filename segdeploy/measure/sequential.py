"""Is one thing slower than another, beyond a limit? Decided at a few looks, with errors bounded.

The unit is a launch: two processes of identical code differ by more than the blocks within one, so
that only launches tell how far a ratio can be trusted. Everything is a logarithm of a ratio here:
slower and faster are symmetric, and drifts that hit both sides alike vanish.

The estimate is the interquartile mean of all pairs of blocks: a quarter of them may be disturbed on
either side, and on a busy host one in eight is, by 10 % and more. Its standard error comes from a
bootstrap that draws whole launches (Efron 1979; of clusters: Davison and Hinkley 1997, 3.8),
widened by sqrt(n / (n - 1)) and Student's t, since the plain percentile interval of five launches
is far too narrow (Hesterberg 2015, Am. Stat. 69).

Looking several times must not raise the error: each look may err by less, by Pocock's table (1977,
Biometrika 64). It is for looks at equal distances; ours begin with five launches and are closer to
each other, so that a little is given away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.gate import Verdict
from segdeploy.measure.student import t_quantile

FALSE_ALARM, FALSE_PASS = 0.01, 0.025
"""Errors over all looks: of an interval's lower end (a false regression needs one, and a chance
estimate beyond the limit as well), and of its upper end (a slowdown of just the limit passes)."""
LEAST_LAUNCHES, MOST_LOOKS = 5, 5
LOOK_SHARES = (1.0, 0.56, 0.41, 0.33, 0.28)
"""By the number of looks, the share of an error that each may spend (Pocock 1977, table 1, for an
error of 1 %: 0.0056, 0.0041, 0.0033 and 0.0028)."""
_POWER = 0.8
_RESAMPLES = 500
_MOST_LAUNCHES, _MOST_DEGREES = 1_000_000, 200
"""Nobody runs more; Student's t of more degrees is that of these, to a hundredth."""
Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Location:
    """An estimated log ratio, its standard error and the degrees of freedom of that error.

    `parts` are the candidate and the baseline where the latter is stored: more launches of the
    candidate leave the baseline's error as it is.
    """

    value: float
    error: float
    degrees: int
    parts: tuple[Location, Location] | None = None


@dataclass(frozen=True)
class Look:
    """What one look at the data says: ratio and interval as factors, > 1 is worse."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    minimal_detectable_effect: float
    more_launches: int | None = None


def pair_ratios(baseline_ms: Sequence[float], candidate_ms: Sequence[float]) -> list[float]:
    """Return a launch's log ratios of the medians of its blocks, in the order they were run.

    Block i of one side ran next to block i of the other; a steady drift changes its sign from pair
    to pair in ABBA order.

    Raises:
        ValueError: If the numbers of blocks differ, there is none, or a time is not positive.
    """
    pairs = list(zip(baseline_ms, candidate_ms, strict=True))
    if not pairs:
        raise ValueError("no blocks")
    return [math.log(candidate / baseline) for baseline, candidate in pairs]


def locate(launches: Sequence[Sequence[float]], *, seed: int = 0) -> Location:
    """Return the location of values in launches of equal size, two launches at least."""
    values = np.asarray(launches, dtype=np.float64)
    count = len(values)
    if count < 2:
        raise ValueError("one launch says nothing about the next")
    draws = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    error = float(np.std(_interquartile_mean(values[draws].reshape(_RESAMPLES, -1))))
    widened = error * math.sqrt(count / (count - 1))
    return Location(float(_interquartile_mean(values.reshape(1, -1))[0]), widened, count - 1)


def locate_difference(
    baseline: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]
) -> Location:
    """Return candidate minus baseline of launches that did not run side by side.

    A baseline of a single launch is given the spread of the candidate's launches: its own bias is
    unknown, and it is one draw of that size.
    """
    own = locate(candidate)
    if len(baseline) < 2:
        spread = float(np.std(np.median(np.asarray(candidate), axis=1), ddof=1))
        other = Location(float(np.median(baseline[0])), spread, _MOST_DEGREES)  # `own` knows it.
    else:
        other = locate(baseline, seed=1)
    return Location(
        own.value - other.value,
        math.hypot(own.error, other.error),
        min(own.degrees, other.degrees),
        (own, other),
    )


def _interquartile_mean(samples: Logs) -> Logs:
    """Return the mean of the middle half of each row."""
    rows = np.sort(samples, axis=-1)
    cut = rows.shape[-1] // 4
    found: Logs = rows[..., cut : rows.shape[-1] - cut].mean(axis=-1)
    return found


def judge_look(location: Location, limit: float, share: float) -> Look:
    """Return what is known when a share of the errors may be spent on this look.

    Args:
        location: The log ratio, more is worse.
        limit: Largest allowed growth, 0.05 = 5 %.
        share: Of FALSE_ALARM and FALSE_PASS, in (0, 1].
    """
    bound = math.log1p(limit)
    half = t_quantile(1 - share * FALSE_ALARM, location.degrees) * location.error
    above = t_quantile(1 - share * FALSE_PASS, location.degrees) * location.error
    low, high = location.value - half, location.value + above
    power = t_quantile(_POWER, location.degrees) * location.error
    look = Look(
        _verdict(location.value, low, high, bound),
        math.exp(location.value),
        math.exp(low),
        math.exp(high),
        math.expm1(max(half, bound) + power),
    )
    if look.verdict is not Verdict.INCONCLUSIVE:
        return look
    if location.value >= bound:
        return replace(look, more_launches=_more(location, location.value, share * FALSE_ALARM))
    return replace(look, more_launches=_more(location, bound - location.value, share * FALSE_PASS))


def _verdict(value: float, low: float, high: float, bound: float) -> Verdict:
    if low > 0 and value >= bound:
        return Verdict.REGRESSION
    if high < 0 and value <= -bound:
        return Verdict.IMPROVEMENT
    return Verdict.PASS if high <= bound else Verdict.INCONCLUSIVE


def _more(location: Location, gap: float, risk: float) -> int | None:
    """Return about how many launches more would decide, if the estimate stayed where it is.

    Args:
        location: The log ratio.
        gap: How far its interval may reach.
        risk: The error that the interval may have.

    Returns:
        None where no number of them would.
    """
    own, stored = location.parts or (location, Location(0.0, 0.0, _MOST_DEGREES))
    done = own.degrees + 1

    def is_enough(launches: int) -> bool:
        error = math.hypot(own.error * math.sqrt(done / launches), stored.error)
        degrees = min(launches - 1, stored.degrees, _MOST_DEGREES)
        return t_quantile(1 - risk, degrees) * error <= gap

    low, high = done, _MOST_LAUNCHES
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high - done


def run_looks(
    sample: Callable[[], float],
    is_decided: Callable[[float], bool],
    budget_s: float,
    clock: Callable[[], float],
) -> int:
    """Sample launches and look at them until it is decided or the time is up; return the looks.

    The least number of launches is run whatever the budget. How many fit is known after these; no
    launch is begun that would not fit. The budget is of sampling; starting processes comes on top,
    and may double it at the most.

    Args:
        sample: Runs one launch of both sides; returns the seconds of it that were sampling.
        is_decided: Looks at all launches so far; gets the share of the errors that it may spend.
        budget_s: Seconds of sampling.
        clock: Seconds since any moment.
    """
    start, sampled = clock(), 0.0
    for _ in range(LEAST_LAUNCHES):
        sampled += sample()
    done, looks = LEAST_LAUNCHES, 0

    def fit() -> int:
        """Return how many launches the time is enough for, as they went so far."""
        used = max(sampled, (clock() - start) / 2, 1e-9)
        return int(budget_s * done / used + 1e-9)

    planned = max(done, fit())
    goals = sorted({round(goal) for goal in np.linspace(done, planned, MOST_LOOKS)})
    share = LOOK_SHARES[len(goals) - 1]
    for goal in goals:
        while done < goal and fit() > done:
            sampled += sample()
            done += 1
        looks += 1
        if is_decided(share) or done < goal:
            break
    return looks
