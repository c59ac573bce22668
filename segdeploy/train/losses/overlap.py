"""Losses of soft overlap: one minus the Tversky index, of which Dice and Jaccard are cases.

Sources: Salehi et al., "Tversky loss function for image segmentation", 2017, equation 2; Milletari
et al., "V-Net", 2016 (Dice); Rahman & Wang, "Optimizing intersection-over-union", 2016 (Jaccard).
"""

from __future__ import annotations

import torch
from torch import Tensor

from segdeploy.core.task import Task
from segdeploy.train.losses.base import ImageLoss, is_class, require_option


class Tversky(ImageLoss):
    """The mean over the classes that an image shows; of a binary task, always the foreground.

    With hits, false alarms and misses in pixels of probability, the index of a class is
    (hits + smooth) / (hits + alpha false alarms + beta misses + smooth). Class weights weight the
    mean over classes.
    """

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *,
        alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(task, ignore, weights)
        self.alpha = require_option("alpha", alpha, is_met=alpha >= 0, rule="at least 0")
        self.beta = require_option("beta", beta, is_met=beta >= 0, rule="at least 0")
        self.smooth = require_option("smooth", smooth, is_met=smooth > 0, rule="positive")

    def images(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of each image."""
        is_binary = self.task is Task.BINARY
        chance = logits.sigmoid() if is_binary else logits.softmax(dim=1)
        truth = is_class(target, logits.shape[1], self.task) & valid.unsqueeze(1)
        hits, found, true = (
            each.flatten(2).sum(dim=2)
            for each in (chance * truth, chance * valid.unsqueeze(1), truth)
        )
        partial = hits + self.alpha * (found - hits) + self.beta * (true - hits)
        lost = 1 - (hits + self.smooth) / (partial + self.smooth)
        counts = (true >= 0 if is_binary else true > 0).to(lost.dtype)
        if self.weights is not None and not is_binary:
            counts = counts * self.weights
        norm = counts.sum(dim=1).clamp(min=torch.finfo(lost.dtype).tiny)
        return (lost * counts).sum(dim=1) / norm


class Dice(Tversky):
    """Tversky with alpha = beta = 1/2."""

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *, smooth: float = 1.0
    ) -> None:
        super().__init__(task, ignore, weights, alpha=0.5, beta=0.5, smooth=smooth)


class Jaccard(Tversky):
    """Tversky with alpha = beta = 1."""

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *, smooth: float = 1.0
    ) -> None:
        super().__init__(task, ignore, weights, alpha=1.0, beta=1.0, smooth=smooth)
