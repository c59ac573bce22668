"""Scores of a confusion matrix (K, K), row = truth. All lie in [0, 1]; NaN says "no evidence".

A class without a labelled pixel is absent: NaN per class, and not part of any mean. Counting it as
0 (or 1) would let the choice of images move the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
Metric = Callable[[Confusion], float | Scores]


def class_iou(confusion: Confusion) -> Scores:
    """Return intersection over union per class (K,): TP / (TP + FP + FN)."""
    hits = np.diag(confusion)
    return _where_present(hits, confusion.sum(0) + confusion.sum(1) - hits, confusion)


def class_accuracy(confusion: Confusion) -> Scores:
    """Return the share of each class's pixels that were found (K,): TP / (TP + FN)."""
    return _where_present(np.diag(confusion), confusion.sum(1), confusion)


def mean_iou(confusion: Confusion) -> float:
    """Return the mean of `class_iou` over the classes present."""
    return _mean(class_iou(confusion))


def dice(confusion: Confusion) -> float:
    """Return the mean over the classes present of 2 TP / (2 TP + FP + FN) (the F1 score)."""
    sizes = confusion.sum(0) + confusion.sum(1)
    return _mean(_where_present(2 * np.diag(confusion), sizes, confusion))


def pixel_accuracy(confusion: Confusion) -> float:
    """Return the share of labelled pixels that are right."""
    total = int(confusion.sum())
    return float(np.trace(confusion) / total) if total else float("nan")


def frequency_weighted_iou(confusion: Confusion) -> float:
    """Return `class_iou` weighted by each class's share of the labelled pixels."""
    pixels = confusion.sum(1)
    total = int(pixels.sum())
    return float(np.nansum(class_iou(confusion) * pixels) / total) if total else float("nan")


def _where_present(part: Confusion, whole: Confusion, confusion: Confusion) -> Scores:
    scores = np.full(len(confusion), np.nan)
    np.divide(part, whole, out=scores, where=confusion.sum(1) > 0)
    return scores


def _mean(scores: Scores) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")
