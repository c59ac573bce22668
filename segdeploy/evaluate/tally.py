"""What an evaluation counts: one confusion matrix, and for each image one record of integers.

Records are small (a few numbers a class), so that scores which need single images (intervals over
images, saliency, outlines) come from the same run. A process fills the records of its own images
and leaves the others zero: adding all of them up is gathering them, bit by bit. That holds for the
image's name too, whose bytes are added as the integers that they make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends.predictor import Prediction
from segdeploy.core.task import Task, ignore_value
from segdeploy.metrics.boundary import band_counts, contour_counts
from segdeploy.metrics.coco import Found
from segdeploy.metrics.loop import Counts
from segdeploy.metrics.saliency import NUM_THRESHOLDS, saliency_counts

_NAME_BYTES = 96  # A multiple of 8: records are summed as int64.


@dataclass(frozen=True)
class Wanted:
    """What is counted: K label ids; outlines (slow); a binary model's probabilities.

    `instances`: the IoU types ("segm", "bbox") by which COCO's evaluation shall judge.
    """

    num_labels: int
    task: Task = Task.MULTICLASS
    outlines: bool = False
    saliency: bool = False
    instances: tuple[str, ...] = ()

    @property
    def confusion_shape(self) -> tuple[int, ...]:
        """(K, K), or (K, 2, 2) of a multilabel task."""
        k = self.num_labels
        return (k, 2, 2) if self.task is Task.MULTILABEL else (k, k)

    @property
    def record(self) -> np.dtype[np.void]:
        """The type of one image's record; every field but its name (UTF-8) is int64."""
        k = self.num_labels
        fields: list[tuple[Any, ...]] = [
            ("name", f"S{_NAME_BYTES}"), ("classes", np.int64, (3, k)), ("right", np.int64, (2,)),
        ]  # fmt: skip
        if self.outlines:
            fields += [("band", np.int64, (3, k)), ("contour", np.int64, (4, k))]
        if self.saliency:
            fields += [("histogram", np.int64, (2, NUM_THRESHOLDS)), ("error", np.int64, (2,))]
        return np.dtype(fields)


@dataclass
class Tally:
    """Counts of N images: `confusion`, row = truth; `records` (N,) of `Wanted.record`.

    `found` holds the predicted instances, where they are wanted; they are no part of `flat`.
    """

    confusion: NDArray[np.int64]
    records: NDArray[np.void]
    found: Found = field(default_factory=dict)

    @classmethod
    def empty(cls, wanted: Wanted, num_images: int) -> Self:
        """Return zeros."""
        confusion = np.zeros(wanted.confusion_shape, np.int64)
        return cls(confusion, np.zeros(num_images, wanted.record))

    @classmethod
    def from_flat(cls, wanted: Wanted, flat: NDArray[np.int64]) -> Self:
        """Return what `flat` gave."""
        confusion, records = np.split(flat, [math.prod(wanted.confusion_shape)])
        return cls(confusion.reshape(wanted.confusion_shape), records.view(wanted.record))

    @property
    def flat(self) -> NDArray[np.int64]:
        """All counts in one row: what processes add up."""
        return np.concatenate([self.confusion.ravel(), self.records.view(np.int64)])

    def add(self, part: Tally, places: slice) -> None:
        """Take over the counts of the images at these places."""
        self.confusion += part.confusion
        self.records[places] = part.records
        self.found.update(part.found)


def fill_record(
    record: NDArray[np.void] | Any,
    label: NDArray[np.integer[Any]],
    found: Prediction,
    counted: Counts,
) -> None:
    """Count one image into its record; the record's fields say what is wanted."""
    names, ignore = record.dtype.names or (), ignore_value(counted.num_classes)
    counts, matrix = counted.counts, counted.matrix
    record["classes"] = np.stack([counts.hits, counts.truth, counts.predicted])
    record["right"] = np.trace(matrix, axis1=-2, axis2=-1).sum(), matrix.sum()
    if "band" in names:
        record["band"] = _outlines(band_counts, label, found.labels, counted.num_classes)
        record["contour"] = _outlines(contour_counts, label, found.labels, counted.num_classes)
    if "histogram" in names and found.confidence is not None:
        foreground = np.where(found.labels == 1, found.confidence, 1 - found.confidence)
        record["histogram"], record["error"] = saliency_counts(label, foreground, ignore)


def _outlines(
    count: Callable[..., NDArray[np.int64]],
    label: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    num_classes: int,
) -> NDArray[np.int64]:
    """Return what `count` says of each class (..., K); of masks (K, H, W), each by itself."""
    if label.ndim == 2:
        return count(label, prediction, num_classes, ignore_value(num_classes))
    each = [count(*masks, 2)[:, 1] for masks in zip(label, prediction, strict=True)]
    return np.stack(each, axis=1)
