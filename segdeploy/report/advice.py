"""What is said of each artifact's worth: one sentence on when to use it, or why not.

The decision is `report.worth`'s; here are only words, and the facts that explain them: how many
Q/DQ borders a slow int8 graph has, where a target is at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdeploy.report.worth import (
    Measured,
    Standing,
    compare,
    find_dominators,
    find_rivals,
    find_standing,
    latency_of,
    looks_slower,
    quality_gain,
)

_HOMES = {
    "tensorrt": "NVIDIA GPUs",
    "coreml": "Apple devices",
    "executorch": "phones",
    "litert": "Android devices",
    "ncnn": "phones and boards",
}

_FUSABLE = frozenset({
    "Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu", "Selu",
    "Sigmoid", "Softplus", "Swish", "Tanh",
})  # fmt: skip
"""Activations and gates, which one runtime or another makes one kernel of with an int8 neighbour;
what is not here (Resize, Pad, Add) stands beside it as a node of its own."""


@dataclass(frozen=True)
class Worth:
    """The answer for one artifact; `dominated_by` is empty on the front. `advice` is a sentence."""

    name: str
    standing: Standing
    dominated_by: tuple[str, ...]
    advice: str

    @property
    def is_on_front(self) -> bool:
        """Whether nobody is better in everything."""
        return self.standing is Standing.FRONT

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `report`."""
        return {
            "name": self.name,
            "standing": str(self.standing),
            "dominated_by": list(self.dominated_by),
            "advice": self.advice,
        }


def judge_worth(artifacts: Sequence[Measured]) -> list[Worth]:
    """Return one answer per artifact, in their order."""
    found = []
    for one, better in zip(artifacts, find_dominators(artifacts), strict=True):
        standing = find_standing(one, better)
        advice = _advise(one, standing, better, find_rivals(one, artifacts))
        found.append(Worth(one.name, standing, tuple(b.name for b in better), advice))
    return found


def _advise(
    one: Measured, standing: Standing, better: Sequence[Measured], rivals: Sequence[Measured]
) -> str:
    home = _HOMES.get(one.backend)
    if standing is Standing.FAILED:
        return f"Not to be used: it failed verification ({', '.join(one.failures or ())})."
    if standing is Standing.UNVERIFIED:
        meant = f" It is meant for {home}." if home else ""
        return f"Not to be used yet: it was never verified.{meant}"
    if standing is Standing.UNMEASURED:
        return f"For {home}: not measured here." if home else "Not measured here."
    slow = _slower_than_parent(one, rivals)
    if slow and one.target == "onnx-fp16" and one.device == "cpu":
        return f"For GPUs and NPUs: on this CPU {slow}."
    if standing is Standing.DOMINATED:
        advice = f"Not worth it here: {_gain(better[0], one)}{f'; {slow}' if slow else ''}."
        return f"{advice} It is meant for {home}." if home else advice
    return _when_to_use(one, rivals, slow)


def _slower_than_parent(one: Measured, rivals: Sequence[Measured]) -> str:
    """Say by how much, and why, a narrower precision is slower than fp32 of the same backend."""
    wide = [
        rival
        for rival in rivals
        if (rival.backend, rival.precision, rival.reference) == (one.backend, "fp32", one.reference)
    ]
    parent = min(wide, key=lambda rival: rival.contract != one.contract, default=None)
    if one.precision == "fp32" or parent is None or compare(parent, one)["latency"] != 1:
        return ""
    causes = _causes(one)
    said = f"{_slower(latency_of(one) / latency_of(parent))} than {parent.name}"
    return f"it is {said}{f' here: {causes}' if causes else ''}"


def _causes(one: Measured) -> str:
    found = [f"{one.borders} Q/DQ borders"] if one.borders else []
    between = {name: count for name, count in one.float_activations.items() if count}
    found += [f"{n} unfused {name}" for name, n in between.items() if name in _FUSABLE]
    found += [f"{n} {name} in float" for name, n in between.items() if name not in _FUSABLE]
    return ", ".join(found)


def _slower(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f} % slower" if ratio < 2 else f"{ratio:.1f}x slower"


def _gain(one: Measured, other: Measured) -> str:
    """Say in what `one` is better than `other`; the rest is equal."""
    signs = compare(one, other)
    found = []
    if signs["latency"] == 1:
        found.append(f"{100 * (1 - latency_of(one) / latency_of(other)):.0f} % faster")
    if signs["quality"] == 1 and (gain := quality_gain(one, other)):
        points = f"{100 * gain[0]:.2f}"
        found.append(f"{points} points of mIoU better" if gain[1] else f"{points} % fewer flips")
    if signs["size"] == 1:
        found.append(f"{other.size_mib - one.size_mib:.1f} MiB smaller")
    if signs["memory"] == 1 and one.memory_mib is not None and other.memory_mib is not None:
        found.append(f"{other.memory_mib - one.memory_mib:.0f} MiB of memory less")
    text = f"{one.name}: {_listed(found)}"
    if signs["quality"] == 0:
        text += " at equal quality"
    elif signs["latency"] == 0:
        text += " at equal speed"
    return text


def _when_to_use(one: Measured, rivals: Sequence[Measured], slow: str) -> str:
    """Say when to use an artifact that nobody dominates."""
    if not rivals:
        return "The only one that was measured under these conditions."
    wins = [reason for axis, reason in _REASONS.items() if _is_best(one, rivals, axis)]
    facts = _facts(one, rivals)
    if wins:
        advice = f"Use it where {_listed(wins)} {'counts' if len(wins) == 1 else 'count'}: {facts}"
    else:
        advice = f"A compromise: {facts}"
    return f"{advice}{f'; {slow}' if slow else ''}."


_REASONS = {
    "latency": "speed",
    "quality": "every point of quality",
    "size": "the size of the file",
    "memory": "memory",
}


def _is_best(one: Measured, rivals: Sequence[Measured], axis: str) -> bool:
    """Return whether a rival is worse on an axis, none is better, and no equal one is faster."""
    if axis == "latency" and any(looks_slower(one, rival) for rival in rivals):
        return False
    signs = [compare(one, rival) for rival in rivals]
    known = [(found[axis], found["latency"]) for found in signs if found[axis] is not None]
    is_beaten = any(sign == -1 or (sign == 0 and speed == -1) for sign, speed in known)
    return not is_beaten and any(sign == 1 for sign, _ in known)


def _facts(one: Measured, rivals: Sequence[Measured]) -> str:
    """Say what it costs, and how that stands to the fastest rival, or to the next one."""
    fastest = min(rivals, key=latency_of)
    ratio = latency_of(one) / latency_of(fastest)
    found = [f"{latency_of(one):.3g} ms"]
    if compare(one, fastest)["latency"] == 0:
        is_apart = looks_slower(one, fastest) or looks_slower(fastest, one)
        said = "too noisy to tell from" if is_apart else "within noise as fast as"
        found.append(f"{said} {fastest.name}")
    elif ratio > 1:
        found.append(f"{_slower(ratio)} than {fastest.name}")
    else:
        found.append(f"{100 * (1 - ratio):.0f} % faster than {fastest.name}")
    if one.mean_iou is not None:
        found.append(f"mIoU {one.mean_iou:.4f}")
    elif one.flip_rate is not None:
        found.append(f"{100 * one.flip_rate:.2f} % flips")
    return ", ".join([*found, f"{one.size_mib:.1f} MiB"])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
