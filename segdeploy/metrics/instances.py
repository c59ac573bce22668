"""Instances of one image as the COCO evaluation takes them, and how a label map becomes some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.frameworks.coco import find_coco

_EIGHT_NEIGHBOURS = np.ones((3, 3), np.int64)
_MOST = 100
"""Of one image and class COCO judges the surest 100; a noisy map has thousands of small parts."""


@dataclass(frozen=True)
class Instances:
    """M instances: masks (M, H, W), the truth's category ids (M,), scores (M,), higher is surer."""

    masks: NDArray[np.bool_]
    categories: NDArray[np.integer[Any]]
    scores: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        num = len(self.masks)
        if self.masks.ndim != 3 or self.categories.shape != (num,) or self.scores.shape != (num,):
            raise DataError(
                f"Instances need masks (M, H, W), categories (M,), scores (M,), found "
                f"{self.masks.shape}, {self.categories.shape}, {self.scores.shape}."
            )
        if not np.isfinite(self.scores).all():
            raise DataError("An instance's score is not finite.")


def find_instances(
    labels: NDArray[np.integer[Any]],
    confidence: NDArray[np.floating[Any]],
    categories: Mapping[int, int],
) -> Instances:
    """Return the connected parts (8 neighbours) of each class, scored by their mean confidence.

    A label map cannot tell touching objects of one class apart: they become one instance. Of each
    class the surest 100 are returned, which are those that COCO's evaluation looks at.

    Args:
        labels: Class ids (H, W).
        confidence: Probability of the predicted class (H, W).
        categories: Class id to category id of the truth; other classes (background) are left out.

    Raises:
        BackendUnavailableError: If SciPy is not installed.
    """
    find_coco("scipy")
    from scipy import ndimage

    masks, found, scores = [], [], []
    for class_id, category in categories.items():
        parts, num = ndimage.label(labels == class_id, _EIGHT_NEIGHBOURS)
        sure = np.atleast_1d(ndimage.mean(confidence, parts, np.arange(1, num + 1)))
        best = np.sort(np.argsort(-sure, kind="stable")[:_MOST])
        masks += [parts == part for part in best + 1]
        found += [category] * len(best)
        scores += sure[best].tolist()
    stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape), np.bool_)
    return Instances(stacked, np.array(found, np.int64), np.array(scores, np.float64))
