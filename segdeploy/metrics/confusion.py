"""The confusion matrix: int64 counts, so that any split of the images over processes adds up.

`matrix[t, p]` counts pixels of truth t predicted as p. Pixels with the ignore value are dropped;
any other id that is no class is an error, never a silent remap: a wrong class map would otherwise
look like a bad model. A binary task has K = 2 here: background, then its one class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.scores import ClassCounts
from segdeploy.core.task import IGNORE, Task, ignore_value


def count_labels(task: Task, num_classes: int) -> int:
    """Return K of the confusion matrix: 2 for a binary task, else the number of class names.

    A multilabel task has K matrices of 2 x 2 (`metrics.multilabel`).
    """
    return 2 if task is Task.BINARY else num_classes


def label_names(task: Task, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the name of each label id; a binary task's id 0 is everything but its class."""
    if task is not Task.BINARY:
        return classes
    background = "background" if classes[0] != "background" else "not background"
    return (background, classes[0])


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs over K classes.

    Args:
        num_classes: K.
        matrix: Counts to start from, int64 (K, K); copied.
    """

    def __init__(self, num_classes: int, matrix: NDArray[np.int64] | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class, not {num_classes}")
        self.num_classes = num_classes
        self.ignore = ignore_value(num_classes)
        shape = (num_classes, num_classes)
        self._matrix = np.zeros(shape, np.int64) if matrix is None else np.array(matrix, np.int64)
        if self._matrix.shape != shape:
            raise ValueError(f"counts have shape {self._matrix.shape}, not {shape}")

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The counts (K, K), row = truth; a copy."""
        return self._matrix.copy()

    @property
    def counts(self) -> ClassCounts:
        """Hits, truth and predictions per class (K,): what scores are made of."""
        return ClassCounts.of(self.matrix)

    def update(
        self, label: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], name: str = ""
    ) -> None:
        """Count the pixels of one or more label maps of equal shape.

        Args:
            label: Truth: class ids, with the ignore value where nothing is counted.
            prediction: Class ids.
            name: What messages call the image.

        Raises:
            DataError: If the label has another shape, or an id that is no class.
            ArtifactError: If the prediction has an id that is no class: the model is not this K's.
        """
        label, prediction = np.asarray(label), np.asarray(prediction)
        where = f" of {name}" if name else ""
        if label.shape != prediction.shape:
            raise DataError(
                f"The label{where} has shape {label.shape}, its prediction {prediction.shape}."
            )
        if label.dtype == prediction.dtype == np.uint8 and self.ignore == IGNORE:
            self._matrix += self._count_bytes(label, prediction, where)
        else:
            self._matrix += self._count_any(label, prediction, where)

    def _count_bytes(
        self, label: NDArray[Any], prediction: NDArray[Any], where: str
    ) -> NDArray[np.int64]:
        """Count all 256 x 256 pairs of bytes: one pass, where masks and checks cost several."""
        pairs = label.astype(np.uint16).ravel()
        pairs <<= 8
        pairs |= prediction.ravel()
        joint = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        strays = joint[self.num_classes : self.ignore].any(axis=1)
        if strays.any():
            raise self._stray_label(int(strays.argmax()) + self.num_classes, where)
        strays = joint[: self.num_classes, self.num_classes :].any(axis=0)
        if strays.any():
            raise self._stray_prediction(int(strays.argmax()) + self.num_classes, where)
        return joint[: self.num_classes, : self.num_classes]

    def _count_any(
        self, label: NDArray[Any], prediction: NDArray[Any], where: str
    ) -> NDArray[np.int64]:
        """Count ids of any integer type."""
        truth = label[label != self.ignore]
        guess = prediction[label != self.ignore]
        if (stray := self._find_stray(truth)) is not None:
            raise self._stray_label(stray, where)
        if (stray := self._find_stray(guess)) is not None:
            raise self._stray_prediction(stray, where)
        pairs = truth.astype(np.int64) * self.num_classes + guess.astype(np.int64)
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        return counts.reshape(self._matrix.shape)

    def _find_stray(self, ids: NDArray[Any]) -> int | str | None:
        if ids.size == 0 or ids.dtype == np.bool_:
            return None
        if not np.issubdtype(ids.dtype, np.integer):
            return f"type {ids.dtype}"
        low, high = int(ids.min()), int(ids.max())
        if low < 0:
            return low
        return high if high >= self.num_classes else None

    def _stray_label(self, stray: int | str, where: str) -> DataError:
        return DataError(
            f"The label{where} holds the id {stray}, but there are {self.num_classes} "
            f"classes (0 to {self.num_classes - 1}; {self.ignore} is ignored).",
            hint="Check the class list and how the masks were written.",
        )

    def _stray_prediction(self, stray: int | str, where: str) -> ArtifactError:
        return ArtifactError(
            f"The prediction{where} holds the id {stray}, but there are {self.num_classes} classes."
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return the counts of both; raises ValueError for another K."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot add counts of {other.num_classes} to {self.num_classes}")
        return ConfusionMatrix(self.num_classes, self._matrix + other._matrix)
