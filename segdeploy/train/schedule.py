"""The learning-rate schedule: linear warm-up, then poly decay, per iteration.

Source of the decay: Chen et al., "DeepLab", 2017, equation 1: (1 - step / steps) ^ power.
"""

from __future__ import annotations


def poly_factor(step: int, num_steps: int, warmup_steps: int, power: float) -> float:
    """Return the factor on the peak learning rate at iteration `step` (from 0), in (0, 1].

    A warm-up longer than half of the run is shortened to half, so that short runs still train.
    """
    warmup = min(warmup_steps, num_steps // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return float((1 - (step - warmup) / max(1, num_steps - warmup)) ** power)
