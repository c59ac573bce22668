"""Losses of a multilabel task: a binary loss of each class, averaged over the classes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from segdeploy.core.task import Task
from segdeploy.train.losses.base import Loss


class PerClass:
    """A binary loss of every class's own logit, as if each were an image of its own.

    A loss over pixels is then the mean over all valid decisions, one over images the mean over all
    pairs of image and class that have a valid pixel.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTILABEL})

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum; logits and label (N, K, H, W)."""
        return self.loss.total(logits.flatten(0, 1).unsqueeze(1), label.flatten(0, 1))

    def normalizer(self, label: Tensor) -> Tensor:
        """Return what a batch is divided by."""
        return self.loss.normalizer(label.flatten(0, 1))
