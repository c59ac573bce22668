"""What an evaluation counts: one confusion matrix, and for each image one record of integers.

Records are small (a few numbers a class), so that scores which need single images (intervals over
images, saliency, outlines) come from the same run. A process fills the records of its own images
and leaves the others zero: adding all of them up is gathering them, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends.predictor import Prediction
from segdeploy.core.task import ignore_value
from segdeploy.metrics import ConfusionMatrix
from segdeploy.metrics.boundary import band_counts, contour_counts
from segdeploy.metrics.saliency import NUM_THRESHOLDS, saliency_counts


@dataclass(frozen=True)
class Wanted:
    """What is counted: K label ids; outlines (slow); a binary model's probabilities."""

    num_labels: int
    outlines: bool = False
    saliency: bool = False

    @property
    def record(self) -> np.dtype[np.void]:
        """The type of one image's record; every field is int64."""
        k = self.num_labels
        fields: list[tuple[str, type[np.int64], tuple[int, ...]]] = [("classes", np.int64, (3, k))]
        if self.outlines:
            fields += [("band", np.int64, (3, k)), ("contour", np.int64, (4, k))]
        if self.saliency:
            fields += [("histogram", np.int64, (2, NUM_THRESHOLDS)), ("error", np.int64, (2,))]
        return np.dtype(fields)


@dataclass
class Tally:
    """Counts of N images: `confusion` (K, K), row = truth; `records` (N,) of `Wanted.record`."""

    confusion: NDArray[np.int64]
    records: NDArray[np.void]

    @classmethod
    def empty(cls, wanted: Wanted, num_images: int) -> Self:
        """Return zeros."""
        shape = (wanted.num_labels, wanted.num_labels)
        return cls(np.zeros(shape, np.int64), np.zeros(num_images, wanted.record))

    @classmethod
    def from_flat(cls, wanted: Wanted, flat: NDArray[np.int64]) -> Self:
        """Return what `flat` gave."""
        confusion, records = np.split(flat, [wanted.num_labels**2])
        return cls(confusion.reshape((wanted.num_labels,) * 2), records.view(wanted.record))

    @property
    def flat(self) -> NDArray[np.int64]:
        """All counts in one row: what processes add up."""
        return np.concatenate([self.confusion.ravel(), self.records.view(np.int64)])

    def add(self, part: Tally, places: slice) -> None:
        """Take over the counts of the images at these places."""
        self.confusion += part.confusion
        self.records[places] = part.records


def fill_record(
    record: NDArray[np.void] | Any,
    label: NDArray[np.integer[Any]],
    found: Prediction,
    matrix: ConfusionMatrix,
) -> None:
    """Count one image into its record; the record's fields say what is wanted."""
    names, ignore = record.dtype.names or (), ignore_value(matrix.num_classes)
    counts = matrix.counts
    record["classes"] = np.stack([counts.hits, counts.truth, counts.predicted])
    if "band" in names:
        maps = (label, found.labels, matrix.num_classes, ignore)
        record["band"], record["contour"] = band_counts(*maps), contour_counts(*maps)
    if "histogram" in names and found.confidence is not None:
        foreground = np.where(found.labels == 1, found.confidence, 1 - found.confidence)
        record["histogram"], record["error"] = saliency_counts(label, foreground, ignore)
