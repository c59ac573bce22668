"""The loss of a presence head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.task import Task


class Presence:
    """Binary cross-entropy of which classes an image shows: the loss of a presence head.

    Source: the semantic encoding loss of Zhang et al., "Context Encoding for Semantic
    Segmentation", 2018, section 3.1. An image without a valid pixel tells nothing and counts none.
    """

    def __init__(self, task: Task, ignore: int) -> None:
        self.task, self.ignore = task, ignore

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over images of the mean over classes; logits (N, K)."""
        target = self._present(label, logits.shape[1])
        each = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return (each.mean(dim=1) * self._is_labelled(label)).sum()

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the number of images that have a valid pixel, float64 scalar."""
        return self._is_labelled(label).double().sum()

    def _present(self, label: Tensor, num_classes: int) -> Tensor:
        """1.0 for every class (N, K) that a valid pixel has; the foreground alone if binary."""
        if self.task is Task.MULTILABEL:
            return (label == 1).flatten(2).any(dim=2).float()
        ids = label.flatten(1).long()
        if self.task is Task.BINARY:
            return (ids == 1).any(dim=1, keepdim=True).float()
        ids = torch.where(ids == self.ignore, num_classes, ids)  # One more column, dropped again.
        columns = torch.zeros(len(ids), num_classes + 1, device=label.device)
        return columns.scatter_(1, ids, 1.0)[:, :num_classes]

    def _is_labelled(self, label: Tensor) -> Tensor:
        return (label != self.ignore).flatten(1).any(dim=1)
