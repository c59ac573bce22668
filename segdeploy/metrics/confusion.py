"""The confusion matrix: int64 counts, so that any split of the images over processes adds up.

`matrix[t, p]` counts pixels of truth t predicted as p. Pixels with the ignore value are dropped;
any other id that is no class is an error, never a silent remap: a wrong class map would otherwise
look like a bad model. A binary task has K = 2 here: background, then its one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.task import Task, ignore_value


class LabelledImage(Protocol):
    """What `accumulate` needs of a sample; `segdeploy.data.Sample` is one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """Uint8 RGB of shape (H, W, 3)."""

    @property
    def label(self) -> NDArray[np.unsignedinteger[Any]]:
        """Class ids of shape (H, W), with the ignore value."""


def count_labels(task: Task, num_classes: int) -> int:
    """Return K of the confusion matrix: 2 for a binary task, else the number of class names."""
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
        truth = label[label != self.ignore]
        guess = prediction[label != self.ignore]
        if stray := self._stray_id(truth):
            raise DataError(
                f"The label{where} holds the id {stray}, but there are {self.num_classes} "
                f"classes (0 to {self.num_classes - 1}; {self.ignore} is ignored).",
                hint="Check the class list and how the masks were written.",
            )
        if stray := self._stray_id(guess):
            raise ArtifactError(
                f"The prediction{where} holds the id {stray}, but there are {self.num_classes} "
                "classes."
            )
        pairs = truth.astype(np.int64) * self.num_classes + guess.astype(np.int64)
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        self._matrix += counts.reshape(self._matrix.shape)

    def _stray_id(self, ids: NDArray[Any]) -> str | None:
        if ids.size == 0 or ids.dtype == np.bool_:
            return None
        if not np.issubdtype(ids.dtype, np.integer):
            return f"type {ids.dtype}"
        low, high = int(ids.min()), int(ids.max())
        if low < 0:
            return str(low)
        return str(high) if high >= self.num_classes else None

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return the counts of both; raises ValueError for another K."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot add counts of {other.num_classes} to {self.num_classes}")
        return ConfusionMatrix(self.num_classes, self._matrix + other._matrix)


def accumulate(
    samples: Iterable[LabelledImage],
    predict: Callable[[NDArray[np.uint8]], NDArray[np.integer[Any]]],
    num_classes: int,
    *,
    progress: Callable[[], object] | None = None,
) -> tuple[ConfusionMatrix, int]:
    """Return the confusion matrix over all samples, and how many images there were.

    Args:
        samples: Read one by one; nothing is kept.
        predict: Label map (H, W) of one image, at the size of the image's label.
        num_classes: K of the matrix (`count_labels`).
        progress: Called after each image.

    Raises:
        DataError: If a label does not fit; names the sample.
    """
    matrix = ConfusionMatrix(num_classes)
    num_images = 0
    for sample in samples:
        if sample.label.shape != sample.image.shape[:2]:
            raise DataError(
                f"The label of {sample.name} has size {sample.label.shape}, its image "
                f"{sample.image.shape[:2]} (H, W)."
            )
        try:
            prediction = predict(sample.image)
        except DataError as error:
            raise DataError(f"{sample.name}: {error.message}", hint=error.hint) from error
        matrix.update(sample.label, prediction, sample.name)
        num_images += 1
        if progress is not None:
            progress()
    return matrix, num_images
