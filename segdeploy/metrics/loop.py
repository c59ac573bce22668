"""The one loop over labelled images: predict, check, count.

Train's validation and `evaluate` share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.metrics.confusion import ConfusionMatrix
from segdeploy.metrics.multilabel import MultilabelCounts

Counts = ConfusionMatrix | MultilabelCounts


class LabelledImage(Protocol):
    """What the loop needs of a sample; `segdeploy.data.Sample` is one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """Uint8 RGB of shape (H, W, 3)."""

    @property
    def label(self) -> NDArray[np.unsignedinteger[Any]]:
        """Class ids (H, W), or a multilabel task's masks (K, H, W), with the ignore value."""


class Predicted(Protocol):
    """What a model says of one image; `segdeploy.backends.predictor.Prediction` is one."""

    @property
    def labels(self) -> NDArray[np.integer[Any]]:
        """Label map (H, W) or masks (K, H, W), at the size of the image's label."""


P = TypeVar("P", bound=Predicted)


def create_counts(task: Task, num_classes: int, matrix: NDArray[np.int64] | None = None) -> Counts:
    """Return what counts the pixels of a task, from `matrix` or 0 on; K as in `count_labels`."""
    if task is Task.MULTILABEL:
        return MultilabelCounts(num_classes, matrix)
    return ConfusionMatrix(num_classes, matrix)


def count_each(
    samples: Iterable[LabelledImage],
    predict: Callable[[NDArray[np.uint8]], P],
    num_classes: int,
    task: Task = Task.MULTICLASS,
) -> Iterator[tuple[LabelledImage, P, Counts]]:
    """Yield each sample, its prediction, and the counts of this one image.

    Args:
        samples: Read one by one; nothing is kept.
        predict: The prediction for one image.
        num_classes: K of the matrix (`count_labels`).
        task: What labels and predictions mean.

    Raises:
        DataError: If a label does not fit; names the sample.
    """
    for sample in samples:
        if sample.label.shape[-2:] != sample.image.shape[:2]:
            raise DataError(
                f"The label of {sample.name} has size {sample.label.shape[-2:]}, its image "
                f"{sample.image.shape[:2]} (H, W)."
            )
        try:
            found = predict(sample.image)
        except DataError as error:
            raise DataError(f"{sample.name}: {error.message}", hint=error.hint) from error
        counts = create_counts(task, num_classes)
        counts.update(sample.label, found.labels, sample.name)
        yield sample, found, counts


@dataclass(frozen=True)
class _LabelsOnly:
    labels: NDArray[np.integer[Any]]


def accumulate(
    samples: Iterable[LabelledImage],
    predict: Callable[[NDArray[np.uint8]], NDArray[np.integer[Any]]],
    num_classes: int,
    *,
    task: Task = Task.MULTICLASS,
    progress: Callable[[], object] | None = None,
) -> tuple[Counts, int]:
    """Return the confusion counts over all samples, and how many images there were.

    Args:
        samples: Read one by one; nothing is kept.
        predict: Label map (H, W) or masks (K, H, W) of one image, at the size of its label.
        num_classes: K of the matrix (`count_labels`).
        task: What labels and predictions mean.
        progress: Called after each image.

    Raises:
        DataError: If a label does not fit; names the sample.
    """
    total, num_images = create_counts(task, num_classes).matrix, 0
    for _, _, counts in count_each(samples, lambda i: _LabelsOnly(predict(i)), num_classes, task):
        total += counts.matrix
        num_images += 1
        if progress is not None:
            progress()
    return create_counts(task, num_classes, total), num_images
