"""Cross-entropy of all valid pixels, and of the hard ones alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.task import Task
from segdeploy.train.losses.base import (
    ImageLoss,
    PixelLoss,
    PixelMean,
    class_logits,
    in_fp32,
    require_option,
)


class CrossEntropy(PixelMean):
    """Softmax cross-entropy; total / normaliser equals torch's weighted mean with ignore_index.

    `smoothing` is the share of the target that all classes get alike (Szegedy et al., "Rethinking
    the Inception architecture", 2016, section 7).
    """

    tasks = frozenset({Task.MULTICLASS})

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *, smoothing: float = 0.0
    ) -> None:
        super().__init__(task, ignore, weights)
        is_met = 0 <= smoothing < 1
        self.smoothing = require_option("smoothing", smoothing, is_met=is_met, rule="in [0, 1)")

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the weighted sum over valid pixels, in one fused kernel."""
        return F.cross_entropy(
            in_fp32(logits), label.long(), self.weights, ignore_index=self.ignore,
            reduction="sum", label_smoothing=self.smoothing,
        )  # fmt: skip


class BinaryCrossEntropy(PixelLoss):
    """Sigmoid cross-entropy of one logit channel against labels 0 and 1."""

    tasks = frozenset({Task.BINARY})

    def pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each pixel."""
        truth = (target == 1).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")


class OhemCrossEntropy(ImageLoss):
    """Cross-entropy averaged over the hard pixels of each image.

    Hard are pixels whose true class has a probability of at most `threshold`, and never fewer than
    the share `keep` of the image's valid pixels, hardest first (all that tie with the last one).
    Source: Wu et al., "Bridging category-level and instance-level semantic image segmentation",
    2016, section 3.2; per image rather than per batch, so that ranks add up.
    """

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, *,
        threshold: float = 0.7, keep: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(task, ignore, weights)
        is_met = 0 < threshold <= 1
        require_option("threshold", threshold, is_met=is_met, rule="in (0, 1]")
        self.cut = -math.log(threshold)
        self.keep = require_option("keep", keep, is_met=0 < keep <= 1, rule="in (0, 1]")

    def images(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of each image."""
        pixel = F.cross_entropy(class_logits(logits, self.task), target, reduction="none")
        weight = self._hard(pixel.detach(), valid).to(pixel.dtype)
        if self.weights is not None:
            weight = weight * self.weights[target]
        total, norm = (each.flatten(1).sum(dim=1) for each in (pixel * weight, weight))
        return total / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def _hard(self, pixel: Tensor, valid: Tensor) -> Tensor:
        """Which pixels (N, H, W) count."""
        ranked = pixel.masked_fill(~valid, -torch.inf).flatten(1).sort(dim=1, descending=True)[0]
        least = (valid.flatten(1).sum(dim=1, keepdim=True) * self.keep).ceil().long()
        last = ranked.gather(1, (least - 1).clamp(min=0)).clamp(max=self.cut)
        return valid & (pixel >= last.unsqueeze(2))
