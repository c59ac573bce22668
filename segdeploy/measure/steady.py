"""When has a runtime warmed up? When its block medians show no change any more.

Fixed warm-ups are too short for some models and waste seconds on others; a share of programs never
gets steady at all, and then the numbers should say so (Barrett, Bolz-Tereick, Killick, Mount and
Tratt, "Virtual machine warmup blows hot and cold", OOPSLA 2017, who use change points for it).

The test: of all ways to cut the medians in two, the least-squares cut (the maximum of the
standardised CUSUM; Sen and Srivastava, Annals of Statistics 3, 1975) counts as a change if the two
means differ by more than chance (the critical value) and by more than 2 %, which is what repeated
runs vary by anyhow. What lies before a change is dropped, and the rest is tested again. Sigma comes
from differences of neighbours, which neither a step nor a drift can blow up. Steady is a tail
without a change that is long enough: a slow drift always looks flat in a short one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.measure.clock import NS_PER_S, Samples, sample_calls

LEAST_BLOCKS = 8
BLOCK_S = 0.05
LEAST_S = 1.0
"""A frequency that drops after 0.8 s cannot be seen in the first 0.4 s."""
_TAIL_SHARE = 1 / 3
_CRITICAL = 4.0  # Of 200 blocks of pure noise, 1 % exceed 3.7.
_TOLERANCE = 0.02
_EDGE = 2  # A single block is no level.


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up went; the two `steady_after` are None if it never was steady, or too short.

    `is_judged` is False where there were too few blocks to say anything.
    """

    seconds: float
    calls: int
    steady_after_s: float | None
    steady_after_calls: int | None
    is_judged: bool


def find_steady(medians: Sequence[float]) -> int | None:
    """Return from which block on the medians are steady, or None if they are not (yet)."""
    values = np.asarray(medians, dtype=np.float64)
    least = max(LEAST_BLOCKS, math.ceil(_TAIL_SHARE * len(values)))
    start = 0
    while len(values) - start >= least:
        change = _find_change(values[start:])
        if change is None:
            return start
        start += change
    return None


def _find_change(values: NDArray[np.float64]) -> int | None:
    """Return where the second of two levels begins, or None if there is one level only."""
    size = len(values)
    cuts = np.arange(_EDGE, size - _EDGE + 1)
    sums = np.cumsum(values)
    left = sums[cuts - 1] / cuts
    right = (sums[-1] - sums[cuts - 1]) / (size - cuts)
    scores = np.abs(left - right) * np.sqrt(cuts * (size - cuts) / size)
    cut = int(cuts[np.argmax(scores)])
    before, after = float(np.median(values[:cut])), float(np.median(values[cut:]))
    is_large = abs(before - after) > _TOLERANCE * after
    return cut if is_large and float(scores.max()) > _CRITICAL * _noise(values) else None


def _noise(values: NDArray[np.float64]) -> float:
    """Return the standard deviation between neighbours, by the median absolute deviation."""
    steps = np.abs(np.diff(values))
    return 1.4826 * float(np.median(steps)) / math.sqrt(2)


def warm_up_until_steady(
    call: Callable[[], object],
    cap_s: float,
    *,
    least_s: float = LEAST_S,
    clock: Callable[[], int] = perf_counter_ns,
) -> WarmUp:
    """Call until block medians are steady, `cap_s` at most, and once in any case.

    Args:
        call: Runs once and waits for its result.
        cap_s: Longest time.
        least_s: Shortest time, unless the cap is shorter.
        clock: Nanoseconds; another one in tests.
    """
    begin = clock()
    medians: list[float] = []
    starts: list[int] = []  # Of each block: when, and after how many calls, it began.
    counts: list[int] = []
    calls = 0
    steady: int | None = None
    while True:
        passed = (clock() - begin) / NS_PER_S
        if medians and (passed >= cap_s or (steady is not None and passed >= least_s)):
            break
        block: Samples = sample_calls(call, min(BLOCK_S, cap_s), clock=clock)
        starts.append(block.starts_ns[0])
        counts.append(calls)
        calls += len(block.ms)
        medians.append(float(np.median(block.ms)))
        steady = find_steady(medians)
    return WarmUp(
        seconds=(clock() - begin) / NS_PER_S,
        calls=calls,
        steady_after_s=None if steady is None else (starts[steady] - begin) / NS_PER_S,
        steady_after_calls=None if steady is None else counts[steady],
        is_judged=len(medians) >= LEAST_BLOCKS,
    )


def warm_up_warnings(warm_ups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the warm-ups of all launches (`WarmUp` as dicts) say against their samples."""
    bad = [each for each in warm_ups if each["is_judged"] and each["steady_after_s"] is None]
    if not bad:
        return []
    longest = max(each["seconds"] for each in bad)
    where = f" in {len(bad)} of {len(warm_ups)} launches" if len(warm_ups) > 1 else ""
    changed = f"Never steady{where}: block medians still changed after {longest:.1f} s of warm-up."
    return [f"{changed} Give more --warmup, or find what disturbs the machine."]
