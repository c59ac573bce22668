"""The Lovász extension of the Jaccard loss: of softmax errors, or of hinge errors if binary.

Source: Berman et al., "The Lovász-softmax loss", 2018, equation 9 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segdeploy.core.task import Task
from segdeploy.train.losses.base import ImageLoss


class Lovasz(ImageLoss):
    """The mean over the classes that an image shows, weighted by class; binary: the foreground."""

    def images(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of each image; one by one, as each sorts its own classes only."""
        image = self._hinge if self.task is Task.BINARY else self._softmax
        parts = zip(logits.flatten(2), target.flatten(1), valid.flatten(1), strict=True)
        return torch.stack([image(*part) for part in parts])

    def _hinge(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        truth = (target == 1).unsqueeze(0)
        return _extension(1 - torch.where(truth, logits, -logits), truth, valid)[0]

    def _softmax(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        shown = torch.unique(target[valid])
        truth = target == shown.unsqueeze(1)
        chance = logits.softmax(dim=0)[shown]
        each = _extension(torch.where(truth, 1 - chance, chance), truth, valid)
        weights = torch.ones_like(each) if self.weights is None else self.weights[shown]
        return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(each.dtype).tiny)


def _extension(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the loss (C,) of pixel errors (C, M), given which pixels are of each class (C, M)."""
    ranked, order = errors.masked_fill(~valid, -torch.inf).sort(dim=1, descending=True)
    truth = (truth & valid).gather(1, order)
    missed = truth.cumsum(dim=1)
    true = missed[:, -1:]
    union = true + (~truth).cumsum(dim=1)
    # In float32 rounding would blur the steps, which are about 1 / M.
    jaccard = 1 - (true - missed).double() / union
    steps = jaccard.diff(dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return (ranked.relu() * steps.to(ranked.dtype)).sum(dim=1)
