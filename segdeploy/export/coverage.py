"""Which images of a labelled set calibrate: those that together show every class, rare ones first.

An int8 range that no image of a rare class has seen clips just that class. Images are added one by
one, each the one that raises sum over classes of sqrt(share of the class's pixels seen) the most.
The root makes the first images of a class count more than further ones, and an image that holds a
fifth of all pixels of a rare class more than any image of road. Nothing is drawn: ties go to the
image that comes first. Ignored pixels count for nothing.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.task import Task
from segdeploy.data import Dataset

CANDIDATES = 4  # Labels of so many images for each one wanted are looked at; sets can be large.


def spread(length: int, count: int) -> tuple[int, ...]:
    """Return up to `count` indices evenly spread over `length`."""
    places = np.linspace(0, length - 1, min(count, length))
    return tuple(int(i) for i in np.unique(np.rint(places)))


Counted = MutableMapping[int, NDArray[np.int64]]
"""Pixels (K,) of each class, by index of the image."""


def choose_by_coverage(
    dataset: Dataset, count: int, counted: Counted | None = None
) -> tuple[int, ...]:
    """Return indices of `count` images in rising order; none if no pixel is labelled.

    Labels of images that `counted` has are not read again; it is added to.

    Raises:
        DataError: If an image or a label is damaged.
    """
    counted = {} if counted is None else counted
    candidates = spread(len(dataset), count * CANDIDATES)
    for index in candidates:
        if index not in counted:
            counted[index] = count_classes(dataset, index)
    pixels = np.stack([counted[index] for index in candidates])
    if not pixels.any():
        return ()
    return tuple(sorted(candidates[i] for i in cover_classes(pixels, count)))


def count_classes(dataset: Dataset, index: int) -> NDArray[np.int64]:
    """Return the number of pixels (K,) of each class in a label; of two in a binary one."""
    label = np.asarray(dataset[index].label)
    num_classes = len(dataset.classes)
    if dataset.task is Task.MULTILABEL:
        found: NDArray[Any] = (label == 1).reshape(num_classes, -1).sum(axis=1)
        return found.astype(np.int64)
    num_ids = 2 if dataset.task is Task.BINARY else num_classes
    counts = np.bincount(label.ravel(), minlength=num_ids)[:num_ids]
    return counts.astype(np.int64)


def cover_classes(pixels: NDArray[np.int64], count: int) -> Sequence[int]:
    """Return rows of `pixels` (M, K) in the order in which they are chosen."""
    total = pixels.sum(axis=0)
    shares = pixels[:, total > 0] / total[total > 0]
    seen = np.zeros(shares.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(pixels))):
        gains = np.sqrt(seen + shares).sum(axis=1)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        seen += shares[chosen[-1]]
    return chosen
