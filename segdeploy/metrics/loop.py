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
from segdeploy.metrics.confusion import ConfusionMatrix


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
        """Class ids of shape (H, W), with the ignore value."""


class Predicted(Protocol):
    """What a model says of one image; `segdeploy.backends.predictor.Prediction` is one."""

    @property
    def labels(self) -> NDArray[np.integer[Any]]:
        """Label map (H, W), at the size of the image's label."""


P = TypeVar("P", bound=Predicted)


def count_each(
    samples: Iterable[LabelledImage], predict: Callable[[NDArray[np.uint8]], P], num_classes: int
) -> Iterator[tuple[LabelledImage, P, ConfusionMatrix]]:
    """Yield each sample, its prediction, and the confusion matrix of this one image.

    Args:
        samples: Read one by one; nothing is kept.
        predict: The prediction for one image.
        num_classes: K of the matrix (`count_labels`).

    Raises:
        DataError: If a label does not fit; names the sample.
    """
    for sample in samples:
        if sample.label.shape != sample.image.shape[:2]:
            raise DataError(
                f"The label of {sample.name} has size {sample.label.shape}, its image "
                f"{sample.image.shape[:2]} (H, W)."
            )
        try:
            found = predict(sample.image)
        except DataError as error:
            raise DataError(f"{sample.name}: {error.message}", hint=error.hint) from error
        matrix = ConfusionMatrix(num_classes)
        matrix.update(sample.label, found.labels, sample.name)
        yield sample, found, matrix


@dataclass(frozen=True)
class _LabelsOnly:
    labels: NDArray[np.integer[Any]]


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
    total, num_images = ConfusionMatrix(num_classes), 0
    for _, _, matrix in count_each(samples, lambda i: _LabelsOnly(predict(i)), num_classes):
        total += matrix
        num_images += 1
        if progress is not None:
            progress()
    return total, num_images
