"""Numbers about predictions: the confusion matrix, what is derived from it, and decision flips.

NumPy only (`confusion_torch` and `coco` excepted). Evidence is counted in integers, so that any
split of the images over processes adds up; a metric is one function of such counts and one line in
`METRICS`, its argument says of which.

    matrix, num_images = accumulate(dataset, predict, num_classes)
    METRICS.get("mean_iou")(matrix.counts)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.registry import Registry
from segdeploy.metrics.confusion import ConfusionMatrix, count_labels, label_names
from segdeploy.metrics.flips import FlipCount
from segdeploy.metrics.loop import accumulate, count_each

Metric = Callable[[Any], float | NDArray[np.float64]]

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "class_accuracy": "segdeploy.core.scores:class_accuracy",
        "class_boundary_f": "segdeploy.metrics.boundary:class_boundary_f",
        "class_boundary_iou": "segdeploy.metrics.boundary:class_boundary_iou",
        "class_dice": "segdeploy.core.scores:class_dice",
        "class_iou": "segdeploy.core.scores:class_iou",
        "foreground_dice": "segdeploy.core.scores:foreground_dice",
        "foreground_iou": "segdeploy.core.scores:foreground_iou",
        "frequency_weighted_iou": "segdeploy.core.scores:frequency_weighted_iou",
        "mae": "segdeploy.metrics.saliency:mae",
        "max_f": "segdeploy.metrics.saliency:max_f",
        "mean_accuracy": "segdeploy.core.scores:mean_accuracy",
        "mean_dice": "segdeploy.core.scores:mean_dice",
        "mean_iou": "segdeploy.core.scores:mean_iou",
        "pixel_accuracy": "segdeploy.core.scores:pixel_accuracy",
    },
)

__all__ = [
    "METRICS",
    "ConfusionMatrix",
    "FlipCount",
    "Metric",
    "accumulate",
    "count_each",
    "count_labels",
    "label_names",
]
