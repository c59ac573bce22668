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
