"""Scores of class counts: all that IoU, accuracy and Dice need of a confusion matrix.

Every score lies in [0, 1]; NaN says "no evidence". A class without a labelled pixel is absent: NaN
per class, and not part of any mean. Counting it as 0 (or 1) would let the choice of images move
the score. Leading axes are independent: counts of (B, K) give B means at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.number[Any]]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ClassCounts:
    """Pixels per class, each (..., K): found rightly, in the truth, predicted."""

    hits: Counts
    truth: Counts
    predicted: Counts

    @classmethod
    def of(cls, confusion: NDArray[np.integer[Any]]) -> ClassCounts:
        """Return the counts of a confusion matrix (..., K, K), row = truth."""
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        return cls(hits, confusion.sum(-1), confusion.sum(-2))

    @classmethod
    def of_yes(cls, confusion: NDArray[np.integer[Any]]) -> ClassCounts:
        """Return the counts of K yes-or-no matrices (..., K, 2, 2), row = truth."""
        yes = confusion[..., 1, :].sum(-1), confusion[..., :, 1].sum(-1)
        return cls(confusion[..., 1, 1], *yes)

    @classmethod
    def stacked(cls, counts: Counts) -> ClassCounts:
        """Return the counts of one array (..., 3, K): hits, truth, predicted."""
        return cls(counts[..., 0, :], counts[..., 1, :], counts[..., 2, :])


Score = Callable[[ClassCounts], Scores]


def class_iou(counts: ClassCounts) -> Scores:
    """Return intersection over union per class (..., K): TP / (TP + FP + FN)."""
    return _ratio(counts, counts.hits, counts.truth + counts.predicted - counts.hits)


def class_accuracy(counts: ClassCounts) -> Scores:
    """Return the share of each class's pixels that were found (..., K): TP / (TP + FN)."""
    return _ratio(counts, counts.hits, counts.truth)


def class_dice(counts: ClassCounts) -> Scores:
    """Return 2 TP / (2 TP + FP + FN) per class (..., K): the F1 score."""
    return _ratio(counts, 2 * counts.hits, counts.truth + counts.predicted)


def mean_iou(counts: ClassCounts) -> Scores:
    """Return the mean of `class_iou` over the classes present (...)."""
    return mean_of_present(class_iou(counts))


def mean_accuracy(counts: ClassCounts) -> Scores:
    """Return the mean of `class_accuracy` over the classes present (...)."""
    return mean_of_present(class_accuracy(counts))


def mean_dice(counts: ClassCounts) -> Scores:
    """Return the mean of `class_dice` over the classes present (...)."""
    return mean_of_present(class_dice(counts))


def pixel_accuracy(counts: ClassCounts) -> Scores:
    """Return the share of labelled pixels that are right (...)."""
    return divide(counts.hits.sum(-1), counts.truth.sum(-1))


def frequency_weighted_iou(counts: ClassCounts) -> Scores:
    """Return `class_iou` weighted by each class's share of the labelled pixels (...)."""
    weighted = np.nan_to_num(class_iou(counts)) * counts.truth
    return divide(weighted.sum(-1), counts.truth.sum(-1))


def foreground_iou(counts: ClassCounts) -> Scores:
    """Return the IoU of a binary task's one class (...)."""
    return class_iou(counts)[..., 1]


def foreground_dice(counts: ClassCounts) -> Scores:
    """Return the Dice of a binary task's one class (...)."""
    return class_dice(counts)[..., 1]


def mean_of_present(scores: Scores) -> Scores:
    """Return the mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(scores)
    return divide(np.where(known, scores, 0).sum(-1), known.sum(-1))


def divide(part: Any, whole: Any) -> Scores:
    """Return part / whole in float64, NaN where the whole is 0."""
    empty = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    ratio: Scores = np.divide(part, whole, out=empty, where=np.asarray(whole) > 0)
    return ratio


def _ratio(counts: ClassCounts, part: Counts, whole: Counts) -> Scores:
    return divide(part, np.where(counts.truth > 0, whole, 0))
