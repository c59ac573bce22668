"""Is an artifact worth it? Who is better in everything, by measured values.

An artifact is dominated if another one, measured under the same conditions, is no worse in latency,
quality, size and memory and better in one of them. "No worse" is within noise: of latency it comes
from the samples, of mIoU it is a bound on the difference, since both were scored on the same images
(the interval of one mIoU says how far other images would move both). Unknown is not better: a value
that one of two lacks decides nothing, and without latency and quality nobody dominates. What failed
verification, or was never verified, dominates nobody and is never recommended.

Pure functions of measured values: no file, no graph, no page. `report.advice` puts it into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

LATENCY_NOISE = 0.02
"""Latencies closer than this are equal, whatever their samples say: blocks of one run drift."""
OTHER_RUN_NOISE = 0.25
"""The same for latencies of two runs: on one machine, the same bytes were 22 % apart."""
IOU_NOISE = 0.001
FLIP_NOISE = 0.001
SIZE_NOISE = 0.01
MEMORY_NOISE = 0.05


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one artifact; None is not measured.

    `latency_interval` is of the median. `flip_rate` (share of pixels decided unlike `reference`)
    stands in where a mIoU is missing. `conditions` must agree for two latencies to be compared,
    `scored_on` for two mIoU; `bench_run` says whether latencies come from one interleaved run.
    `reference_iou` is the checkpoint's own. `failures` are the rules that verification found
    broken: empty if it passed, None if it was never verified. `borders` are Q and DQ nodes between
    int8 and float, `float_activations` counts the operators in float between int8 ones. Two of
    one `digest` compute the same: whatever was measured of them, their cost is equal.
    """

    name: str
    target: str
    latency_ms: float | None = None
    latency_interval: tuple[float, float] | None = None
    mean_iou: float | None = None
    flip_rate: float | None = None
    size_mib: float = 0.0
    memory_mib: float | None = None
    conditions: tuple[str, ...] = ()
    scored_on: tuple[str, ...] = ()
    reference: str | None = None
    reference_iou: float | None = None
    bench_run: str | None = None
    device: str = "cpu"
    contract: str = ""
    failures: tuple[str, ...] | None = None
    borders: int | None = None
    float_activations: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether verification passed; without one nobody knows."""
        return self.failures == ()

    @property
    def backend(self) -> str:
        """The word before the precision."""
        return self.target.rpartition("-")[0]

    @property
    def precision(self) -> str:
        """The word behind the backend."""
        return self.target.rpartition("-")[2]


class Standing(StrEnum):
    """Where an artifact stands among those of its run."""

    FRONT = "front"
    DOMINATED = "dominated"
    FAILED = "failed"
    UNVERIFIED = "not verified"
    UNMEASURED = "not measured"


def find_standing(one: Measured, better: Sequence[Measured]) -> Standing:
    """Return where an artifact stands, given who dominates it."""
    if not one.is_usable:
        return Standing.FAILED if one.failures else Standing.UNVERIFIED
    if known(one.latency_ms) is None:
        return Standing.UNMEASURED
    return Standing.DOMINATED if better else Standing.FRONT


def find_dominators(artifacts: Sequence[Measured]) -> list[list[Measured]]:
    """Return for each artifact who dominates it, fastest first.

    "Within noise" is not transitive: three artifacts can dominate each other in a ring, and none
    would be left. Who is dominated by way of others in turn does not count.
    """
    above = [
        {
            index
            for index, rival in enumerate(artifacts)
            if one.is_usable and _is_rival(rival, one) and dominates(rival, one)
        }
        for one in artifacts
    ]
    return [
        sorted((artifacts[i] for i in direct if mine not in _reach(i, above)), key=latency_of)
        for mine, direct in enumerate(above)
    ]


def _reach(start: int, above: Sequence[set[int]]) -> set[int]:
    """Return all that dominate an artifact, directly or by way of others."""
    found: set[int] = set()
    ahead = [start]
    while ahead:
        fresh = above[ahead.pop()] - found
        found |= fresh
        ahead += fresh
    return found


def find_rivals(one: Measured, artifacts: Sequence[Measured]) -> list[Measured]:
    """Return the others that were measured under the same conditions and passed verification."""
    return [other for other in artifacts if _is_rival(other, one)]


def _is_rival(other: Measured, one: Measured) -> bool:
    return (
        other is not one
        and other.is_usable
        and known(other.latency_ms) is not None
        and other.conditions == one.conditions
    )


def dominates(one: Measured, other: Measured) -> bool:
    """Return whether `one` is no worse than `other` in all that is known of both, and better.

    Where samples are so noisy that their intervals overlap, what looks slower is not called equal:
    that nothing is shown is no proof of equality.
    """
    signs = compare(one, other)
    if signs["latency"] is None or signs["quality"] is None:
        return False
    if looks_slower(one, other):
        return False
    known = [sign for sign in signs.values() if sign is not None]
    return min(known) >= 0 and max(known) > 0


def compare(one: Measured, other: Measured) -> dict[str, int | None]:
    """Return 1 where `one` is better, -1 where it is worse, 0 within noise, None if unknown."""
    signs = {
        "latency": _latency_sign(one, other),
        "quality": _quality_sign(one, other),
        "size": _less(one.size_mib, other.size_mib, SIZE_NOISE),
        "memory": _less(one.memory_mib, other.memory_mib, MEMORY_NOISE),
    }
    if not _is_same(one, other):
        return signs
    return {axis: None if sign is None else 0 for axis, sign in signs.items()}


def _is_same(one: Measured, other: Measured) -> bool:
    return one.digest is not None and one.digest == other.digest


def _latency_sign(one: Measured, other: Measured) -> int | None:
    sign = _less(one.latency_ms, other.latency_ms, _latency_noise(one, other))
    if sign and one.latency_interval and other.latency_interval:
        low, high = sorted((one.latency_interval, other.latency_interval))
        return sign if low[1] < high[0] else 0
    return sign


def looks_slower(one: Measured, other: Measured) -> bool:
    """Return whether the medians differ by more than two equal artifacts' would, proven or not."""
    if _is_same(one, other):
        return False
    return latency_of(one) > latency_of(other) / (1 - _latency_noise(one, other))


def _latency_noise(one: Measured, other: Measured) -> float:
    is_same_run = one.bench_run is not None and one.bench_run == other.bench_run
    return LATENCY_NOISE if is_same_run else OTHER_RUN_NOISE


def quality_gain(one: Measured, other: Measured) -> tuple[float, bool] | None:
    """Return by how much `one` is better, and whether in mIoU (else in the share of flips).

    Scores on other images and flips against another model say nothing of each other.
    """
    mine, theirs = known(one.mean_iou), known(other.mean_iou)
    if mine is not None and theirs is not None and one.scored_on == other.scored_on:
        return mine - theirs, True
    mine, theirs = known(one.flip_rate), known(other.flip_rate)
    if mine is not None and theirs is not None and one.reference == other.reference:
        return theirs - mine, False
    return None


def _quality_sign(one: Measured, other: Measured) -> int | None:
    found = quality_gain(one, other)
    if found is None:
        return None
    gain, is_iou = found
    if abs(gain) <= (IOU_NOISE if is_iou else FLIP_NOISE):
        return 0
    return 1 if gain > 0 else -1


def _less(one: float | None, other: float | None, noise: float) -> int | None:
    """Return 1 if `one` is less than `other` by more than a share of it, -1 if it is more."""
    if known(one) is None or known(other) is None or one is None or other is None:
        return None
    if abs(one - other) <= noise * max(one, other):
        return 0
    return 1 if one < other else -1


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Return a 95 % interval of the median by order statistics (binomial, normal approximation).

    None for fewer than 6 samples, of which even the extremes give less confidence.
    """
    count = len(samples)
    if count < 6:
        return None
    ordered = sorted(samples)
    reach = 0.98 * math.sqrt(count)  # 1.96 standard deviations of a binomial with p = 1/2.
    low = max(0, math.floor(count / 2 - reach))
    return ordered[low], ordered[count - 1 - low]


def latency_of(one: Measured) -> float:
    """Return the latency, infinite where it is unknown."""
    found = known(one.latency_ms)
    return math.inf if found is None else found


def known(value: float | None) -> float | None:
    """Return a finite value, or None: NaN is neither less nor more than anything."""
    return value if value is not None and math.isfinite(value) else None
