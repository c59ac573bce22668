"""What a loss is, and the two kinds: a mean over valid pixels, a mean over images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task

BOTH = frozenset({Task.MULTICLASS, Task.BINARY})


class Loss(Protocol):
    """`ignore` is the label value that does not count; `weights` (K,) are class weights.

    Of a binary task, `weights` are those of background and foreground. Options are keyword-only
    numbers with defaults.
    """

    tasks: ClassVar[frozenset[Task]]
    """What it can train."""

    def __init__(
        self, task: Task, ignore: int, weights: Tensor | None = None, **options: float
    ) -> None: ...

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over pixels or images; logits (N, K, H, W), label int (N, H, W).

        Of a multilabel task, the label is (N, K, H, W).
        """

    def normalizer(self, label: Tensor) -> Tensor:
        """Return what a batch is divided by, float64 scalar; 0 where nothing counts."""


class _Base:
    tasks: ClassVar[frozenset[Task]] = BOTH

    def __init__(self, task: Task, ignore: int, weights: Tensor | None = None) -> None:
        self.task, self.ignore, self.weights = task, ignore, weights

    def _split(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return (labels with class 0 where ignored, which pixels are valid), both (N, H, W)."""
        valid = label != self.ignore
        return torch.where(valid, label, 0).long(), valid


class PixelMean(_Base):
    """A mean over valid pixels, each weighted by its label's class weight."""

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the weight sum of the valid pixels."""
        valid = label[label != self.ignore]
        if self.weights is None:
            return torch.tensor(valid.numel(), dtype=torch.float64, device=label.device)
        counts = torch.bincount(valid, minlength=len(self.weights)).double()
        return (counts * self.weights.double()).sum()


class PixelLoss(PixelMean, ABC):
    """Such a mean of what each pixel loses by itself."""

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the weighted sum over valid pixels."""
        target, valid = self._split(label)
        pixel = self.pixels(in_fp32(logits), target)
        return (
            pixel * valid if self.weights is None else pixel * valid * self.weights[target]
        ).sum()

    @abstractmethod
    def pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each pixel (N, H, W); `target` (N, H, W) holds classes only."""


class ImageLoss(_Base, ABC):
    """A mean over the images that have a valid pixel."""

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over images."""
        target, valid = self._split(label)
        return (self.images(in_fp32(logits), target, valid) * _is_labelled(valid)).sum()

    def normalizer(self, label: Tensor) -> Tensor:
        """Return the number of images that have a valid pixel."""
        return _is_labelled(label != self.ignore).double().sum()

    @abstractmethod
    def images(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of each image (N,) over its pixels that are `valid` (N, H, W)."""


def _is_labelled(valid: Tensor) -> Tensor:
    return valid.flatten(1).any(dim=1)


def in_fp32(logits: Tensor) -> Tensor:
    """Return logits of reduced precision as fp32, others as they are."""
    return logits.float() if logits.dtype.itemsize < torch.float32.itemsize else logits


def class_logits(logits: Tensor, task: Task) -> Tensor:
    """Return logits with one channel per class: a binary task's background gets the logit 0.

    The softmax over (0, z) is (1 - sigmoid(z), sigmoid(z)).
    """
    if task is Task.BINARY:
        return torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def is_class(target: Tensor, channels: int, task: Task) -> Tensor:
    """Return which pixels are of each channel's class, bool (N, K, H, W); binary: foreground."""
    first = int(task is Task.BINARY)
    ids = torch.arange(first, first + channels, device=target.device)
    return target.unsqueeze(1) == ids.view(-1, 1, 1)


def require_option(name: str, value: float, *, is_met: bool, rule: str) -> float:
    """Return the value of a loss's option.

    Raises:
        ConfigError: If it does not follow its rule.
    """
    if not is_met:
        raise ConfigError(f"The loss option {name} must be {rule}, found {value:g}.")
    return value
