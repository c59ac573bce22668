"""Counts of a multilabel task: every class is a yes or no of its own.

The scores of `core.scores` take the counts as they are, e.g. `mean_iou(counts.counts)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.scores import ClassCounts
from segdeploy.core.task import IGNORE

Masks = NDArray[np.integer[Any]]


class MultilabelCounts:
    """A 2 x 2 confusion matrix for each of K classes.

    Args:
        num_classes: K.
        matrix: Counts to start from, int64 (K, 2, 2); copied.
    """

    def __init__(self, num_classes: int, matrix: NDArray[np.int64] | None = None) -> None:
        self.num_classes = num_classes
        shape = (num_classes, 2, 2)
        self._matrix = np.zeros(shape, np.int64) if matrix is None else np.array(matrix, np.int64)
        if self._matrix.shape != shape:
            raise ValueError(f"counts have shape {self._matrix.shape}, not {shape}")

    @property
    def matrix(self) -> NDArray[np.int64]:
        """Counts (K, 2, 2): [class, truth, prediction], no before yes; a copy."""
        return self._matrix.copy()

    @property
    def counts(self) -> ClassCounts:
        """Hits, truth and predictions per class (K,)."""
        return ClassCounts.of_yes(self._matrix)

    def update(self, label: Masks, prediction: Masks, name: str = "") -> None:
        """Count the masks of one image.

        Args:
            label: Truth (K, H, W): 0 and 1, 255 where a class is not labelled.
            prediction: 0 and 1 (K, H, W).
            name: What messages call the image.

        Raises:
            DataError: If the shapes do not fit, or the label holds another value.
        """
        where = f" of {name}" if name else ""
        shape = (self.num_classes, *prediction.shape[1:])
        if label.shape != shape or prediction.shape != shape:
            raise DataError(
                f"The masks{where} must be (K, H, W) with K = {self.num_classes}, found labels "
                f"{label.shape} and predictions {prediction.shape}."
            )
        for k, (truth, found) in enumerate(zip(label, prediction, strict=True)):
            known = truth != IGNORE
            if (stray := truth[known & (truth > 1)]).size:
                raise DataError(
                    f"The mask {k}{where} holds the value {stray[0]}; yes is 1, no is 0, and "
                    f"{IGNORE} is ignored."
                )
            pairs = truth[known] * 2 + found[known]
            self._matrix[k] += np.bincount(pairs, minlength=4).reshape(2, 2)

    def __add__(self, other: MultilabelCounts) -> MultilabelCounts:
        """Return the counts of both; raises ValueError for another K."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot add counts of {other.num_classes} to {self.num_classes}")
        return MultilabelCounts(self.num_classes, self._matrix + other._matrix)
