"""From counts to a verdict: each broken rule is one Failure with its limit and the value found.

Rates hold on every case, not on their average: a fault that only an odd size shows must not drown
in many good images. Rules that hold for every precision come first (it runs, it keeps its contract,
it is finite); then decisions; weights that were never trained have no decisions worth judging.
"""

from __future__ import annotations

from collections.abc import Sequence

from segdeploy.core.results import Failure
from segdeploy.core.target import Precision
from segdeploy.metrics import FlipCount
from segdeploy.verify.compare import CaseCount, has_sound_logits
from segdeploy.verify.tolerances import (
    CHANNEL_NOISE_FACTOR,
    CHANNEL_ROUNDOFF,
    CONFIDENCE_ROUNDING,
    LIMITS,
    MIN_CLASS_PIXELS,
    UNIT_ROUNDOFF,
    UNTRAINED_INT8_SNR_DB,
    UNTRAINED_NOISE_FACTOR,
)


def find_tolerance(precision: Precision, noise_floor: float, median_margin: float) -> float:
    """Return the largest reference gap at which a flip is excusable, in logit units."""
    limits = LIMITS[precision]
    if limits.margin_fraction is not None:
        return limits.margin_fraction * median_margin
    return limit_deviation(precision, noise_floor, trained=True) or 0.0


def limit_deviation(precision: Precision, noise_floor: float, *, trained: bool) -> float | None:
    """Return the largest allowed gauge-free deviation, in logit units; None for int8."""
    factor = LIMITS[precision].deviation_factor if trained else UNTRAINED_NOISE_FACTOR
    if factor is None or precision not in UNIT_ROUNDOFF:
        return None
    return factor * noise_floor * UNIT_ROUNDOFF[precision] / UNIT_ROUNDOFF[Precision.FP32]


def judge(
    total: FlipCount,
    counts: Sequence[CaseCount],
    precision: Precision,
    noise_floor: float,
    names: Sequence[str],
    *,
    trained: bool,
) -> list[Failure]:
    """Return the broken rules; an empty list is a pass.

    Args:
        total: Sum over the cases.
        counts: Per case.
        precision: The coarser one of candidate and reference.
        noise_floor: Of the reference.
        names: Of the label ids.
        trained: False judges by the noise floor (int8: by SNR) only.
    """
    failures = _judge_soundness(total, counts)
    deviation = limit_deviation(precision, noise_floor, trained=trained)
    if deviation is not None and has_sound_logits(total):
        failures += _above("deviation", deviation, total.max_deviation)
    failures += _judge_confidence(counts, precision, deviation, trained=trained)
    if not trained:
        return failures + _judge_untrained(total, precision)
    limits = LIMITS[precision]
    worst_flips = max(c.count.flip_rate for c in counts)
    worst_hard = max(c.count.hard_flip_rate for c in counts)
    failures += _above("hard_flip_rate", limits.hard_flip_rate, worst_hard)
    failures += _above("flip_rate", limits.flip_rate, worst_flips)
    failures += _judge_classes(total, limits.class_flip_rate, names)
    if limits.channel_snr_db is not None:
        ratio = CHANNEL_ROUNDOFF[precision] / CHANNEL_ROUNDOFF[Precision.FP32]
        rounding = CHANNEL_NOISE_FACTOR * noise_floor * ratio
        failures += _judge_channels(total, limits.channel_snr_db, rounding, names)
    return failures


def _judge_soundness(total: FlipCount, counts: Sequence[CaseCount]) -> list[Failure]:
    return [
        *_above("runs", 0, sum(len(c.refused) for c in counts)),
        *_above("output_contract", 0, sum(len(c.broken_contract) for c in counts)),
        *_above("finite", 0, total.num_broken / max(1, total.num_pixels)),
        *_above("reference_finite", 0, total.num_broken_reference / max(1, total.num_pixels)),
        *_above("confidence_range", 0, sum(c.confidence.num_bad for c in counts)),
    ]


def _judge_confidence(
    counts: Sequence[CaseCount], precision: Precision, deviation: float | None, *, trained: bool
) -> list[Failure]:
    """A probability moves by at most half of what the logits may move; int8 has its own limit."""
    if trained and (limit := LIMITS[precision].confidence_rms_error) is not None:
        worst = max(c.confidence.rms_error for c in counts)
        return _above("confidence_rms_error", limit, worst)
    if deviation is None:
        return []
    worst = max(c.confidence.max_error for c in counts)
    return _above("confidence_max_error", deviation / 2 + CONFIDENCE_ROUNDING, worst)


def _judge_untrained(total: FlipCount, precision: Precision) -> list[Failure]:
    if precision in UNIT_ROUNDOFF or not has_sound_logits(total) or total.snr_db is None:
        return []
    return _below("snr_db", UNTRAINED_INT8_SNR_DB, total.snr_db)


def _judge_classes(total: FlipCount, limit: float, names: Sequence[str]) -> list[Failure]:
    failures = []
    for name, rate, pixels in zip(names, total.class_flip_rate, total.class_pixels, strict=True):
        if rate is not None and pixels >= MIN_CLASS_PIXELS:
            failures += _above(f"class_flip_rate:{name}", limit, rate)
    return failures


def _judge_channels(
    total: FlipCount, limit: float, rounding: float, names: Sequence[str]
) -> list[Failure]:
    """Return the channels below the limit whose noise is more than rounding explains."""
    # A yes or no has two names and one channel, that of yes.
    channels = names if len(names) == len(total.channel_snr_db) else names[1::2]
    failures = []
    for name, snr, noise in zip(channels, total.channel_snr_db, total.channel_noise, strict=True):
        if snr is not None and noise > rounding:
            failures += _below(f"channel_snr_db:{name}", limit, snr)
    return failures


def _above(rule: str, limit: float, value: float) -> list[Failure]:
    return [Failure(rule, float(limit), float(value))] if value > limit else []


def _below(rule: str, limit: float, value: float) -> list[Failure]:
    return [Failure(rule, float(limit), float(value))] if value < limit else []
