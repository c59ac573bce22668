"""Counts of a multilabel task: every class is a yes or no of its own, at its own threshold.

A class is predicted where its logit lies above its threshold; 0 is probability one half. The scores
of `core.scores` take the counts as they are, e.g. `mean_iou(counts.counts)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.scores import ClassCounts


class MultilabelCounts:
    """True and false positives and negatives per class over K classes.

    Args:
        num_classes: K.
        thresholds: In logit units, one per class or one for all.
    """

    def __init__(self, num_classes: int, thresholds: float | Sequence[float] = 0.0) -> None:
        self.thresholds = np.broadcast_to(np.asarray(thresholds, np.float64), (num_classes,))
        self._table = np.zeros((num_classes, 2, 2), np.int64)

    @property
    def table(self) -> NDArray[np.int64]:
        """Counts (K, 2, 2): [class, truth, prediction]; a copy."""
        return self._table.copy()

    @property
    def counts(self) -> ClassCounts:
        """Hits, truth and predictions per class (K,)."""
        return ClassCounts(self.table[:, 1, 1], self.table[:, 1].sum(1), self.table[:, :, 1].sum(1))

    def update(
        self,
        label: NDArray[np.bool_],
        logits: NDArray[np.floating[Any]],
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count labels (N, K, H, W) against logits of the same shape, where `valid` (N, H, W).

        Raises:
            DataError: If the shapes do not fit.
        """
        shape = (label.shape[0], len(self.thresholds), *label.shape[2:])
        if label.shape != shape or logits.shape != shape:
            raise DataError(
                f"Multilabel counts need (N, {shape[1]}, H, W), found labels {label.shape} and "
                f"logits {logits.shape}."
            )
        keep = np.ones((shape[0], *shape[2:]), np.bool_) if valid is None else valid
        found = logits > self.thresholds[:, None, None]
        for k in range(shape[1]):
            pairs = label[:, k][keep] * 2 + found[:, k][keep]
            self._table[k] += np.bincount(pairs, minlength=4).reshape(2, 2)
