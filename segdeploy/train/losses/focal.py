"""Focal losses: cross-entropy in which easy pixels fade.

Source: Lin et al., "Focal loss for dense object detection", 2017, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.task import Task
from segdeploy.train.losses.base import PixelLoss, class_logits, is_class, require_option

_LEAST = 1e-12  # Of 1 - p under a power below 1, whose slope at 0 is infinite.


class Focal(PixelLoss):
    """-(1 - p)^gamma log p, where p is the softmax (binary: sigmoid) of the true class."""

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *, gamma: float = 2.0
    ) -> None:
        super().__init__(task, ignore, weights)
        self.gamma = require_option("gamma", gamma, is_met=gamma >= 0, rule="at least 0")

    def pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each pixel."""
        return _focal(-F.cross_entropy(class_logits(logits, self.task), target, reduction="none"),
                      self.gamma)  # fmt: skip


class FocalSigmoid(PixelLoss):
    """The mean over channels of each class's own two-way focal loss, as in the paper.

    `alpha` in [0, 1] is the weight of a channel's class against the rest; -1 weights none.
    """

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *,
        gamma: float = 2.0, alpha: float = -1.0,
    ) -> None:  # fmt: skip
        super().__init__(task, ignore, weights)
        self.gamma = require_option("gamma", gamma, is_met=gamma >= 0, rule="at least 0")
        is_met = 0 <= alpha <= 1 or alpha == -1
        self.alpha = require_option("alpha", alpha, is_met=is_met, rule="in 0..1, or -1 for none")

    def pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each pixel."""
        truth = is_class(target, logits.shape[1], self.task)
        each = _focal(F.logsigmoid(torch.where(truth, logits, -logits)), self.gamma)
        if self.alpha >= 0:
            each = each * torch.where(truth, self.alpha, 1 - self.alpha)
        return each.mean(dim=1)


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    """Return the loss of log probabilities; 1 - p is taken without cancellation."""
    return (-log_p.expm1()).clamp(min=_LEAST) ** gamma * -log_p
