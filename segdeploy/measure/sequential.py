"""Is one thing slower than another, beyond a limit? Decided at a few looks, with errors bounded.

The unit is a launch: two processes of identical code differ by more than the blocks within one, so
that only launches tell how far a ratio can be trusted. Everything is a logarithm of a ratio here:
slower and faster are symmetric, and drifts that hit both sides alike vanish.

The estimate is the Hodges-Lehmann location (1963, Ann. Math. Stat. 34): as robust as a median
against the launch that somebody disturbed, and almost as sharp as a mean. Its standard error comes
from a bootstrap over launches (Efron 1979), widened by sqrt(n / (n - 1)) and Student's t, since the
plain percentile interval of five launches is far too narrow (Hesterberg 2015, Am. Stat. 69).

Looking several times must not raise the error: it is spent over the looks by a function of the
share of the planned launches (Lan and DeMets 1983, Biometrika 70; Pocock's form), and each look
gets the difference (a Bonferroni bound, so a little is given away).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.gate import Verdict
from segdeploy.measure.student import t_quantile

ALPHA = 0.02
"""Two-sided error over all looks: 1 % false regressions and 1 % false passes at the most."""
LEAST_LAUNCHES, MOST_LOOKS = 5, 5
_POWER = 0.8
_RESAMPLES = 500
Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Location:
    """An estimated log ratio, its standard error and the degrees of freedom of that error."""

    value: float
    error: float
    degrees: int


@dataclass(frozen=True)
class Look:
    """What one look at the data says: ratio and interval as factors, > 1 is worse."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    minimal_detectable_effect: float
    more_launches: int | None = None


def launch_ratio(baseline_ms: Sequence[float], candidate_ms: Sequence[float]) -> float:
    """Return one launch's log ratio from the medians of its blocks, in the order they were run.

    Block i of one side ran next to block i of the other. The median over these pairs does not care
    about a burst that hit one block; a steady drift changes sign from pair to pair in ABBA order.

    Raises:
        ValueError: If the numbers of blocks differ, there is none, or a time is not positive.
    """
    pairs = list(zip(baseline_ms, candidate_ms, strict=True))
    return float(np.median([math.log(candidate / baseline) for baseline, candidate in pairs]))


def locate(logs: Sequence[float], *, seed: int = 0) -> Location:
    """Return the location of at least two values, one per launch."""
    values = np.asarray(logs, dtype=np.float64)
    if values.size < 2:
        raise ValueError("one launch says nothing about the next")
    draws = np.random.default_rng(seed).integers(0, values.size, (_RESAMPLES, values.size))
    error = float(np.std(_hodges_lehmann(values[draws])))
    widened = error * math.sqrt(values.size / (values.size - 1))
    return Location(float(_hodges_lehmann(values[None])[0]), widened, values.size - 1)


def locate_difference(baseline: Sequence[float], candidate: Sequence[float]) -> Location:
    """Return candidate minus baseline of launches that did not run side by side.

    A baseline of a single launch is given the spread of the candidate's launches: its own bias is
    unknown, and it is one draw of that size.
    """
    own = locate(candidate)
    if len(baseline) < 2:
        spread = float(np.std(np.asarray(candidate), ddof=1))
        other = Location(float(baseline[0]), spread, own.degrees)
    else:
        other = locate(baseline, seed=1)
    return Location(
        own.value - other.value,
        math.hypot(own.error, other.error),
        min(own.degrees, other.degrees),
    )


def _hodges_lehmann(samples: Logs) -> Logs:
    """Return the median of all pairwise means of each row."""
    first, second = np.triu_indices(samples.shape[-1])
    found: Logs = np.median((samples[..., first] + samples[..., second]) / 2, axis=-1)
    return found


def judge_look(location: Location, limit: float, alpha: float) -> Look:
    """Return what is known when an error of `alpha` (two-sided) may be spent on this look.

    Args:
        location: The log ratio, more is worse.
        limit: Largest allowed growth, 0.05 = 5 %.
        alpha: In (0, 1).
    """
    bound = math.log1p(limit)
    half = t_quantile(1 - alpha / 2, location.degrees) * location.error
    low, high = location.value - half, location.value + half
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
    return Look(**{**look.__dict__, "more_launches": _more(location, half, bound)})


def _verdict(value: float, low: float, high: float, bound: float) -> Verdict:
    if low > 0 and value >= bound:
        return Verdict.REGRESSION
    if high < 0 and value <= -bound:
        return Verdict.IMPROVEMENT
    return Verdict.PASS if high <= bound else Verdict.INCONCLUSIVE


def _more(location: Location, half: float, bound: float) -> int:
    """Return about how many launches more would decide, if the estimate stayed where it is."""
    launches = location.degrees + 1
    gap = location.value if location.value >= bound else bound - location.value
    needed = launches * (half / gap) ** 2 if gap > 0 else math.inf
    return max(1, math.ceil(min(needed, 1e6)) - launches)


def spend_alpha(alpha: float, share: float) -> float:
    """Return the error that may be spent once `share` (0 to 1) of the launches is in."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, share))


def run_looks(
    sample: Callable[[], object],
    is_decided: Callable[[float], bool],
    budget_s: float,
    clock: Callable[[], float],
    *,
    alpha: float = ALPHA,
) -> int:
    """Sample launches and look at them until it is decided or the time is up; return the looks.

    The least number of launches is run whatever the budget. How many fit is known after these; no
    launch is begun that would not fit.

    Args:
        sample: Runs one launch of both sides.
        is_decided: Looks at all launches so far, with the error that this look may spend.
        budget_s: Seconds for everything.
        clock: Seconds since any moment.
        alpha: The error to spend in all.
    """
    start = clock()
    for _ in range(LEAST_LAUNCHES):
        sample()
    done, looks, spent = LEAST_LAUNCHES, 0, 0.0
    planned = max(done, int(budget_s * done / max(1e-9, clock() - start)))
    goals = sorted({round(goal) for goal in np.linspace(done, planned, MOST_LOOKS)})
    for goal in goals:
        while done < goal and (clock() - start) * (done + 1) / done <= budget_s:
            sample()
            done += 1
        looks += 1
        is_last = done < goal or goal == goals[-1]
        total = alpha if is_last else spend_alpha(alpha, done / planned)
        if is_decided(total - spent) or is_last:
            break
        spent = total
    return looks
