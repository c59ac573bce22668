"""Losses that average over valid pixels: a sum over pixels divided by a normaliser.

Sum and normaliser are separate, because the ranks of a distributed run must divide by the valid
pixels of all of them: averaging per-rank means would weight a rank with few valid pixels too much.
Losses are computed in fp32, whatever the autocast precision, so that large logits stay finite.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.task import Task


class Loss(Protocol):
    """`ignore` is the label value that does not count; `weights` (K,) are class weights."""

    tasks: ClassVar[frozenset[Task]]
    """What it can train."""

    def __init__(self, ignore: int, weights: Tensor | None = None) -> None: ...

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the weighted sum over valid pixels; logits (N, K, H, W), label int (N, H, W)."""

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the weight sum of the valid pixels, float64 scalar."""


class CrossEntropy:
    """Softmax cross-entropy; total / normaliser equals torch's weighted mean with ignore_index."""

    tasks = frozenset({Task.MULTICLASS})

    def __init__(self, ignore: int, weights: Tensor | None = None) -> None:
        self.ignore, self.weights = ignore, weights

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over valid pixels."""
        return F.cross_entropy(
            logits.float(), label, self.weights, ignore_index=self.ignore, reduction="sum"
        )

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the weight sum of the valid pixels."""
        valid = label[label != self.ignore]
        if self.weights is None:
            return torch.tensor(valid.numel(), dtype=torch.float64, device=label.device)
        counts = torch.bincount(valid, minlength=len(self.weights)).double()
        return (counts * self.weights.double()).sum()


class BinaryCrossEntropy:
    """Sigmoid cross-entropy of one logit channel against labels 0 and 1."""

    tasks = frozenset({Task.BINARY})

    def __init__(self, ignore: int, weights: Tensor | None = None) -> None:
        self.ignore, self.weights = ignore, weights

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over valid pixels; logits (N, 1, H, W)."""
        valid = label != self.ignore
        target = (label == 1).float()
        pixel = F.binary_cross_entropy_with_logits(logits[:, 0].float(), target, reduction="none")
        if self.weights is not None:
            pixel = pixel * self.weights[(label == 1).long()]
        return (pixel * valid).sum()

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the weight sum of the valid pixels."""
        valid = label[label != self.ignore]
        if self.weights is None:
            return torch.tensor(valid.numel(), dtype=torch.float64, device=label.device)
        return self.weights[valid].double().sum()


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
        ids = label.flatten(1).long()
        if self.task is Task.BINARY:
            return (ids == 1).any(dim=1, keepdim=True).float()
        ids = torch.where(ids == self.ignore, num_classes, ids)  # One more column, dropped again.
        columns = torch.zeros(len(ids), num_classes + 1, device=label.device)
        return columns.scatter_(1, ids, 1.0)[:, :num_classes]

    def _is_labelled(self, label: Tensor) -> Tensor:
        return (label != self.ignore).flatten(1).any(dim=1)
