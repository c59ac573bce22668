"""Exponential moving average of a model's state: validated and kept instead of the last weights.

Source: Polyak averaging as in Tarvainen & Valpola, 2017. Early in a run the average follows
faster, with decay min(d, (1 + n) / (10 + n)) after n updates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """The averaged state dict; integer buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's current state."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        current = module.state_dict()
        floating = [k for k, v in self.state.items() if v.is_floating_point()]
        averaged: list[Tensor] = [self.state[k] for k in floating]
        torch._foreach_lerp_(averaged, [current[k] for k in floating], 1 - decay)
        for key, value in self.state.items():
            if not value.is_floating_point():
                value.copy_(current[key])
