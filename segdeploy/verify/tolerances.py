"""Every tolerance of parity, in one place. Where each number comes from: docs/numerics.md.

Noise floor: largest gauge-free deviation of eager fp32 from eager fp64 on one input. Median margin:
median over the reference's pixels of how far it is from another decision. Both are the reference's
alone, so that no candidate can widen its own tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.core.target import Precision

UNIT_ROUNDOFF = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}
"""Half the distance of 1 to the next number of the format (IEEE 754; bfloat16)."""

NOISE_FACTOR = 8.0
"""fp32: deviation and tolerance of excusable flips, in noise floors."""

MIN_CLASS_PIXELS = 200
"""A class that the reference predicts on fewer pixels is not judged by its flip rate."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a trained model's export may do at one precision; None switches a rule off.

    `margin_fraction` x median margin is the tolerance of excusable flips; None takes NOISE_FACTOR
    x noise floor. `deviation_factor` bounds the deviation in noise floors x the ratio of unit
    roundoffs. Rates are shares of pixels; `class_flip_rate` holds per class, `channel_snr_db` per
    channel of the logits; `confidence_rms_error` per case, None takes half the deviation's limit.
    """

    flip_rate: float
    hard_flip_rate: float
    class_flip_rate: float
    margin_fraction: float | None
    deviation_factor: float | None
    channel_snr_db: float | None
    confidence_rms_error: float | None


LIMITS = {
    Precision.FP32: Limits(
        flip_rate=1e-4,
        hard_flip_rate=0.0,
        class_flip_rate=0.01,
        margin_fraction=None,
        deviation_factor=NOISE_FACTOR,
        channel_snr_db=None,
        confidence_rms_error=None,
    ),
    Precision.FP16: Limits(
        flip_rate=2e-3,
        hard_flip_rate=1e-4,
        class_flip_rate=0.03,
        margin_fraction=0.02,
        deviation_factor=2.0,
        channel_snr_db=40.0,
        confidence_rms_error=0.01,
    ),
    Precision.BF16: Limits(
        flip_rate=0.02,
        hard_flip_rate=1e-3,
        class_flip_rate=0.2,
        margin_fraction=0.1,
        deviation_factor=2.0,
        channel_snr_db=20.0,
        confidence_rms_error=0.03,
    ),
    Precision.INT8: Limits(
        flip_rate=0.08,
        hard_flip_rate=5e-3,
        class_flip_rate=0.5,
        margin_fraction=0.2,
        deviation_factor=None,
        channel_snr_db=10.0,
        confidence_rms_error=0.08,
    ),
}

CHANNEL_ROUNDOFF = {**UNIT_ROUNDOFF, Precision.INT8: 2.0**-8}
"""As UNIT_ROUNDOFF; int8 has 127 levels on either side, the significand of bfloat16."""

CHANNEL_NOISE_FACTOR = 0.5
"""A channel whose noise (rms) is below so many noise floors x the ratio of CHANNEL_ROUNDOFF is not
judged by its SNR: logits that hardly vary over the pixels drown in honest rounding."""

CONFIDENCE_ROUNDING = 2.0**-17
"""What exp, sum and reciprocal in fp32 may cost a probability, at a few hundred classes."""

UNTRAINED_NOISE_FACTOR = 32.0
"""Untrained weights: deviation in noise floors x the ratio of unit roundoffs."""

UNTRAINED_INT8_SNR_DB = 3.0
"""Untrained weights at int8: all that can be asked is that the logits are mostly signal."""
