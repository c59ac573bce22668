"""Learning-rate schedules: a rise over the warm-up, then a decay, per iteration.

`share` is the part of the decay that is over, in [0, 1). Sources: Chen et al., "DeepLab", 2017,
equation 1 (poly); Loshchilov & Hutter, "SGDR", 2017, equation 5 (cosine); Smith & Topin,
"Super-convergence", 2018 (one_cycle, with cosine flanks).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segdeploy.train.config import TrainConfig

_CYCLE_START, _CYCLE_END = 1 / 25, 1 / 250_000  # Of the peak.


def rate_factor(config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the factor on the peak learning rate at iteration `step` (from 0), in (0, 1].

    A warm-up longer than half of the run is shortened to half, so that short runs still train.
    """
    warmup = min(config.warmup_steps, num_steps // 2)
    if config.schedule == "one_cycle":
        return _one_cycle(step, num_steps, warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, num_steps - warmup)
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    if config.schedule == "step":
        epoch = step * config.epochs // num_steps
        return float(config.step_factor ** sum(epoch >= each for each in config.step_epochs))
    return float((1 - share) ** config.poly_power)


def _one_cycle(step: int, num_steps: int, warmup: int) -> float:
    """Rise from a 25th of the peak over the warm-up, fall to nearly nothing at the last step."""
    if step < warmup:
        return _between(_CYCLE_START, 1.0, step / warmup)
    return _between(1.0, _CYCLE_END, (step - warmup) / max(1, num_steps - 1 - warmup))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
