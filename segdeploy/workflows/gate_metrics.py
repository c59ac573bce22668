"""From launches and folders to one verdict per metric.

Every measured metric is one log ratio per launch, in the sense in which more is worse; what is read
from files (size, mIoU) has no noise and is decided at once. Nothing runs here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segdeploy.bench.pairs import Launch, Side
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.gate import MetricVerdict, Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.core.results import EvalResult, read_result
from segdeploy.measure.sequential import (
    Location,
    Look,
    judge_look,
    locate,
    locate_difference,
    pair_ratios,
)

Blocks = Callable[[Side], list[float]]


def _latencies(side: Side) -> list[float]:
    """Return the median of each block in ms."""
    return [statistics.median(block) for block in side.blocks_ms]


def _one(value: float | None) -> list[float]:
    return [] if value is None else [value]


@dataclass(frozen=True)
class _Metric:
    """A metric that varies: `blocks` are a side's values, in which more is worse where `grows`."""

    name: str
    unit: str
    blocks: Blocks
    grows: bool = True


_MEASURED = (
    _Metric("latency", "ms", _latencies),
    _Metric("throughput", "img/s", lambda side: side.throughput_img_s, grows=False),
    _Metric("memory", "MiB", lambda side: _one(side.memory_mib)),
    _Metric("cold_start", "ms", lambda side: _one(side.cold_start_ms)),
)


def count_measured(limits: GateLimits) -> int:
    """Return how many of the limited metrics vary from launch to launch."""
    return sum(getattr(limits, metric.name) is not None for metric in _MEASURED)


class Decisions:
    """What is known of each metric, look by look.

    The error of a look is shared by the metrics, so that it bounds the whole gate's. What was
    decided stays decided, or the next look's smaller share would take it back; a regression ends
    the gate.

    Args:
        limits: Largest growths.
        stored: The baseline's launches where they were run earlier.
    """

    def __init__(self, limits: GateLimits, stored: Sequence[Side] = ()) -> None:
        self._limits, self._stored = limits, stored
        self.metrics: list[MetricVerdict] = []

    def look(self, launches: Sequence[Launch], share: float) -> bool:
        """Judge what is open, spending a share of the errors; return whether the gate is over."""
        share = share / count_measured(self._limits)
        known = {m.name: m for m in self.metrics if m.verdict is not Verdict.INCONCLUSIVE}
        found = judge_launches(launches, self._limits, share, self._stored)
        self.metrics = [known.get(metric.name, metric) for metric in found]
        verdicts = [metric.verdict for metric in self.metrics if metric.ratio is not None]
        return Verdict.REGRESSION in verdicts or Verdict.INCONCLUSIVE not in verdicts


def judge_launches(
    launches: Sequence[Launch],
    limits: GateLimits,
    share: float,
    stored: Sequence[Side] = (),
) -> list[MetricVerdict]:
    """Return a verdict for each limited metric that launches show.

    Args:
        launches: What was measured; of a stored baseline, the candidate's side alone.
        limits: Largest growths.
        share: Of the errors that the intervals may have (`measure.sequential`).
        stored: The baseline's launches where they were run earlier.
    """
    found = []
    for metric in _MEASURED:
        limit = getattr(limits, metric.name)
        if limit is not None:
            found.append(_judge(metric, launches, stored, limit, share))
    return found


def _judge(
    metric: _Metric,
    launches: Sequence[Launch],
    stored: Sequence[Side],
    limit: float,
    share: float,
) -> MetricVerdict:
    own = [metric.blocks(launch.candidate) for launch in launches]
    beside = [launch.baseline for launch in launches if launch.baseline is not None]
    theirs = [metric.blocks(side) for side in beside or stored]
    if not all(own) or not all(theirs) or not theirs:
        return _unknown(metric, limit)
    look = judge_look(_locate(metric, theirs, own, is_paired=bool(beside)), limit, share)
    baseline, candidate = (
        statistics.median(map(statistics.median, side)) for side in (theirs, own)
    )
    return MetricVerdict(
        name=metric.name,
        unit=metric.unit,
        verdict=look.verdict,
        baseline=baseline,
        candidate=candidate,
        ratio=look.ratio,
        ratio_ci=(look.low, look.high),
        limit=1 + limit,
        minimal_detectable_effect=look.minimal_detectable_effect,
        reason=_explain(metric.name, look, limit, is_stored=not beside),
        more_launches=look.more_launches,
    )


def _locate(
    metric: _Metric,
    baseline: Sequence[list[float]],
    candidate: Sequence[list[float]],
    *,
    is_paired: bool,
) -> Location:
    sign = 1 if metric.grows else -1
    if is_paired:
        pairs = zip(baseline, candidate, strict=True)
        return locate([[sign * r for r in pair_ratios(theirs, own)] for theirs, own in pairs])
    return locate_difference(
        [[sign * math.log(statistics.median(values))] for values in baseline],
        [[sign * math.log(statistics.median(values))] for values in candidate],
    )


def _unknown(metric: _Metric, limit: float) -> MetricVerdict:
    return MetricVerdict(
        name=metric.name, unit=metric.unit, verdict=Verdict.INCONCLUSIVE, baseline=None,
        candidate=None, ratio=None, ratio_ci=None, limit=1 + limit, minimal_detectable_effect=None,
        reason=f"{metric.name} cannot be measured here, or the stored baseline has none.",
    )  # fmt: skip


_WORSE = {
    "latency": ("slower", "faster"),
    "throughput": ("less throughput", "more throughput"),
    "memory": ("more memory", "less memory"),
    "cold_start": ("slower to start", "faster to start"),
    "size": ("larger", "smaller"),
}


def describe_ratio(name: str, ratio: float) -> str:
    """Return e.g. `6.2 % slower`."""
    worse, better = _WORSE[name]
    share = 100 * (ratio - 1 if ratio >= 1 else 1 - ratio)
    return f"{share:.1f} % {worse if ratio >= 1 else better}"


def _explain(name: str, look: Look, limit: float, *, is_stored: bool) -> str:
    interval = f"interval {look.low:.3f} to {look.high:.3f}"
    text = f"{describe_ratio(name, look.ratio)} ({interval}, limit {1 + limit:.3f})"
    if look.verdict is not Verdict.INCONCLUSIVE:
        return text
    effect = 100 * look.minimal_detectable_effect
    more = f"about {look.more_launches} launches more would decide"
    if look.more_launches is None:
        more = "no budget will decide" + ": bench the baseline with more launches" * is_stored
    return f"{text}: the smallest slowdown that would show is {effect:.1f} %, {more}"


def judge_files(
    baseline: ModelFolder, candidate: ModelFolder, limits: GateLimits
) -> list[MetricVerdict]:
    """Return the verdicts on size and mIoU, as far as they are limited.

    Raises:
        ConfigError: If mIoU is limited and the two were not evaluated on the same data.
    """
    found = []
    if limits.size is not None:
        found.append(_judge_size(baseline, candidate, limits.size))
    if limits.mean_iou is not None:
        found.append(_judge_quality(baseline, candidate, limits.mean_iou))
    return found


def _judge_size(baseline: ModelFolder, candidate: ModelFolder, limit: float) -> MetricVerdict:
    ratio = candidate.size_mib / baseline.size_mib
    return MetricVerdict(
        name="size", unit="MiB", verdict=_exact_verdict(ratio - 1, limit),
        baseline=baseline.size_mib, candidate=candidate.size_mib, ratio=ratio, ratio_ci=None,
        limit=1 + limit, minimal_detectable_effect=None,
        reason=f"{describe_ratio('size', ratio)} (limit {1 + limit:.3f})",
    )  # fmt: skip


def _judge_quality(baseline: ModelFolder, candidate: ModelFolder, limit: float) -> MetricVerdict:
    """Compare the stored mIoU; the drop is in points."""
    first, second = (_read_evaluation(folder) for folder in (baseline, candidate))
    different = [name for name in first if name != "mean_iou" and first[name] != second[name]]
    if different:
        name = different[0]
        raise ConfigError(
            f"The mIoU of {baseline.path} and that of {candidate.path} cannot be compared: {name} "
            f"is {_shown(first[name])} against {_shown(second[name])}.",
            hint="Run segdeploy evaluate on both with the same --data and options.",
        )
    before, now = first["mean_iou"], second["mean_iou"]
    drop = 100 * (before - now)
    return MetricVerdict(
        name="mean_iou", unit="", verdict=_exact_verdict(drop, limit), baseline=before,
        candidate=now, ratio=None, ratio_ci=None, limit=limit, minimal_detectable_effect=None,
        reason=f"{abs(drop):.2f} points {'lost' if drop >= 0 else 'gained'} (limit {limit:g})",
    )  # fmt: skip


def _read_evaluation(folder: ModelFolder) -> dict[str, Any]:
    """Return a folder's mIoU and what must be equal for it to be compared.

    The labelled pixels of each class tell one set of labels from another of the same name.
    """
    path = folder.path / "eval.json"
    plain = read_result(path)
    hint = f"Run segdeploy evaluate {folder.path} --data D."
    if plain is None:
        raise ConfigError(f"There is no {path}, but mean_iou is limited.", hint=hint)
    try:
        found = EvalResult.from_dict(plain)
        labelled = found.confusion.sum(axis=-1).tolist()
        mean_iou = found.mean_iou
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{path} is no evaluation: {error!r}.", hint=hint) from error
    if mean_iou is None:
        raise ConfigError(f"{path} has no mean IoU, but mean_iou is limited.", hint=hint)
    if found.artifact not in (None, folder.manifest.digest):
        raise ConfigError(f"{path} is the evaluation of another artifact.", hint=hint)
    return {
        "mean_iou": mean_iou, "data": found.data, "classes": found.classes,
        "num_images": found.num_images, "tta": found.tta,
        "sliding_window": found.sliding_window, "threshold": found.threshold,
        "number of labelled pixels": labelled,
    }  # fmt: skip


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _exact_verdict(growth: float, limit: float) -> Verdict:
    """Judge what has no noise; a rounding of the last digit is not beyond the limit."""
    if growth > limit + _ROUNDING:
        return Verdict.REGRESSION
    return Verdict.IMPROVEMENT if growth < -limit - _ROUNDING else Verdict.PASS


_ROUNDING, _MOST_SHOWN = 1e-9, 60
