"""What an artifact may cost at most, and which one that leaves.

    --budget latency=8ms,miou=-0.5,size=5MiB,memory=200MiB

`latency` is the median, `memory` the peak of the process, `size` that of the payload. `miou` of 0
or less is in points below the fp32 model on the same images; above 0 it is the least mIoU, as a
fraction. The fp32 model is the checkpoint where that was scored, else a verified fp32 artifact of
it: "the best of what was scored" would let a lone int8 artifact pass as its own reference.

What was not measured does not meet a limit, and what was not verified is never picked. Of several
that meet all, those that another of them dominates are left out (the report calls them not worth
it), and the fastest of the rest is picked; of those as fast within noise the best, then the
smallest. If they were measured under different conditions, nobody knows which is the fastest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from segdeploy.core.errors import ConfigError
from segdeploy.report.worth import (
    Measured,
    compare,
    find_dominators,
    known,
    latency_of,
    looks_slower,
)

_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"KiB": 2**-10, "MiB": 1.0, "GiB": 2**10, "kB": 1e3 / 2**20, "MB": 1e6 / 2**20}
_EXAMPLE = "Write e.g. latency=8ms,miou=-0.5,size=5MiB,memory=200MiB."
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_SLACK = 1e-9  # A score that is exactly half a point lower may be 0.5000000000000004 in floats.


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits; None is no limit. `miou` <= 0: points below fp32; above 0: the least mIoU."""

    latency_ms: float | None = None
    miou: float | None = None
    size_mib: float | None = None
    memory_mib: float | None = None

    @property
    def words(self) -> str:
        """The limits, as people read them."""
        limits = (
            (self.latency_ms, "at most {} ms"),
            (self.size_mib, "at most {} MiB"),
            (self.memory_mib, "at most {} MiB of memory"),
        )
        said = [text.format(_figure(limit)) for limit, text in limits if limit is not None]
        if self.miou is not None and self.miou > 0:
            said.append(f"mIoU at least {self.miou:g}")
        elif self.miou is not None:
            said.append(f"at most {-self.miou:g} points of mIoU below fp32")
        return ", ".join(said)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `latency=8ms,miou=-0.5,size=5MiB,memory=200MiB`, or a part of it.

        Raises:
            ConfigError: If a limit is unknown, given twice, or cannot be read.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = (each.strip() for each in part.partition("="))
            if not equals or name not in _READERS:
                raise ConfigError(
                    f"'{part.strip()}' is no limit of a budget; there are {', '.join(_READERS)}.",
                    hint=_EXAMPLE,
                )
            key, read = _READERS[name]
            if key in found:
                raise ConfigError(f"The budget limits {name} twice.", hint=_EXAMPLE)
            found[key] = read(name, value)
        return cls(**found)


def _with_unit(units: dict[str, float]) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        match = re.fullmatch(rf"{_NUMBER}\s*({'|'.join(units)})", text, re.ASCII)
        number = float(match[1]) if match else 0.0
        if match is None or number <= 0:
            raise ConfigError(
                f"{name}={text} is no positive number with its unit ({', '.join(units)}).",
                hint=_EXAMPLE,
            )
        return number * units[match[2]]

    return read


def _read_miou(name: str, text: str) -> float:
    match = re.fullmatch(rf"(-?){_NUMBER}", text, re.ASCII)
    value = float(f"{match[1]}{match[2]}") if match else 2.0
    if not -100 <= value <= 1:
        raise ConfigError(
            f"{name}={text} is neither points below fp32 (-0.5) nor a least mIoU (0.62).",
            hint=_EXAMPLE,
        )
    return value + 0.0  # -0 is 0.


_READERS: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "latency": ("latency_ms", _with_unit(_TIMES)),
    "miou": ("miou", _read_miou),
    "size": ("size_mib", _with_unit(_BYTES)),
    "memory": ("memory_mib", _with_unit(_BYTES)),
}


@dataclass(frozen=True)
class Miss:
    """One limit that an artifact does not meet; `by` is how much is missing, in the limit's unit.

    `value` and `by` are None where nothing was measured. `reason` says it in words.
    """

    limit: str
    allowed: float | None
    value: float | None
    by: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a budget leaves: `name` is the pick, or None; `reason` is one sentence.

    `fitting` meet all limits, fastest first; `misses` are of all others. `is_decidable` is False
    where several fit and were measured under different conditions.
    """

    budget: Budget
    name: str | None
    reason: str
    fitting: tuple[str, ...]
    misses: dict[str, tuple[Miss, ...]]
    is_decidable: bool = True

    def __bool__(self) -> bool:
        return self.name is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the part of the JSON document of `compare`; limits without one are left out."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        plain["budget"] = {k: v for k, v in plain["budget"].items() if v is not None}
        return plain


def choose(groups: Sequence[Sequence[Measured]], budget: Budget) -> Choice:
    """Return which artifact meets a budget and is the fastest that is worth it.

    Args:
        groups: Artifacts by what can be compared in latency.
        budget: The limits.
    """
    everyone = [one for group in groups for one in group]
    misses = {one.name: tuple(find_misses(one, everyone, budget)) for one in everyone}
    fitting = [[one for one in group if not misses[one.name]] for group in groups]
    fitting = [sorted(group, key=latency_of) for group in fitting if group]
    names = tuple(one.name for group in fitting for one in group)
    is_decidable = len(fitting) < 2
    if is_decidable:
        name, reason = _pick(fitting[0] if fitting else [], len(everyone))
    else:
        name = None
        reason = (
            f"{', '.join(names)} meet the budget; which is the fastest is not known, since they "
            "were measured under different conditions."
        )
    return Choice(
        budget=budget,
        name=name,
        reason=reason,
        fitting=names,
        misses={name: found for name, found in misses.items() if found},
        is_decidable=is_decidable,
    )


def _pick(fitting: Sequence[Measured], count: int) -> tuple[str | None, str]:
    if not fitting:
        return None, f"None of the {count} artifacts meets the budget."
    best = _find_best(fitting)
    if len(fitting) == 1:
        met = "the only one that meets the budget"
    elif best is fitting[0]:
        met = "the fastest that meets it"
    else:
        met = "the best of the fastest that meet it, which are equal within noise"
    said = f"{best.name} is {met}: {latency_of(best):.3g} ms"
    said += f", mIoU {best.mean_iou:.4f}" if best.mean_iou is not None else ""
    return best.name, f"{said}, {best.size_mib:.1f} MiB."


def _find_best(fitting: Sequence[Measured]) -> Measured:
    """Return the best of the fastest, fastest first, of those that no other of them dominates."""
    found = zip(fitting, find_dominators(fitting), strict=True)
    best, *others = [one for one, better in found if not better]
    fastest = best
    for other in others:
        if not looks_slower(other, fastest) and _is_better(other, best):
            best = other
    return best


def _is_better(one: Measured, other: Measured) -> bool:
    signs = compare(one, other)
    return signs["quality"] == 1 or (signs["quality"] == 0 and signs["size"] == 1)


def find_misses(one: Measured, everyone: Sequence[Measured], budget: Budget) -> list[Miss]:
    """Return the limits that an artifact does not meet, verification first."""
    found = [] if one.is_usable else [_unusable(one)]
    limits = (
        ("latency", budget.latency_ms, one.latency_ms, "ms"),
        ("size", budget.size_mib, one.size_mib, "MiB"),
        ("memory", budget.memory_mib, one.memory_mib, "MiB"),
    )
    for name, allowed, value, unit in limits:
        if allowed is not None and (miss := _over(name, allowed, known(value), unit)):
            found.append(miss)
    if budget.latency_ms is None and known(one.latency_ms) is None:
        found.append(Miss("latency", None, None, None, "latency: not measured"))
    if budget.miou is not None and (short := _too_bad(one, everyone, budget.miou)):
        found.append(short)
    return found


def _unusable(one: Measured) -> Miss:
    if one.failures:
        return Miss("verify", None, None, None, f"failed verification ({', '.join(one.failures)})")
    return Miss("verify", None, None, None, "never verified")


def _over(name: str, allowed: float, value: float | None, unit: str) -> Miss | None:
    if value is None:
        return Miss(name, allowed, None, None, f"{name}: not measured")
    if value <= allowed:
        return None
    over = value - allowed
    shown = [f"{_figure(each)} {unit}" for each in (value, over, allowed)]
    reason = f"{name}: {shown[0]}, {shown[1]} over {shown[2]}"
    return Miss(name, allowed, value, over, reason)


def _figure(value: float) -> str:
    """Return a number with three digits that count, without a power of ten."""
    return (
        f"{value:.3g}" if 1e-3 <= value < 1000 else f"{value:.0f}" if value >= 1 else f"{value:g}"
    )


def _too_bad(one: Measured, everyone: Sequence[Measured], allowed: float) -> Miss | None:
    """Return by how much the quality is too low, or that nobody knows."""
    own = known(one.mean_iou)
    if own is None:
        return Miss("miou", allowed, None, None, "miou: not evaluated")
    if allowed > 0:
        if own >= allowed:
            return None
        reason = f"miou: {own:.4f}, {_figure(allowed - own)} below {allowed:g}"
        return Miss("miou", allowed, own, allowed - own, reason)
    base = find_base_iou(one, everyone)
    if base is None:
        reason = "miou: no fp32 model is evaluated on the same images to compare with"
        return Miss("miou", allowed, None, None, reason)
    points = 100 * (own - base)
    if points >= allowed - _SLACK:
        return None
    reason = f"miou: {points:+.2f} points to fp32, {_figure(allowed - points)} below {allowed:g}"
    return Miss("miou", allowed, points, allowed - points, reason)


def find_base_iou(one: Measured, everyone: Sequence[Measured]) -> float | None:
    """Return the mIoU of the fp32 model that an artifact was made from, on the same images."""
    if one.reference_iou is not None:
        return one.reference_iou
    scores = [
        score
        for other in everyone
        if other.precision == "fp32"
        and other.is_usable
        and one.reference is not None
        and (other.reference, other.scored_on) == (one.reference, one.scored_on)
        and (score := known(other.mean_iou)) is not None
    ]
    return max(scores, default=None)
