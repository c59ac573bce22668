"""Numbers about predictions: the confusion matrix, what is derived from it, and decision flips.

NumPy only. Train's validation and `evaluate` share `accumulate`; a metric is one function of the
confusion matrix and one line in `METRICS`.

    matrix, num_images = accumulate(dataset, predict, num_classes)
    METRICS.get("mean_iou")(matrix.matrix)
"""

from __future__ import annotations

from segdeploy.core.registry import Registry
from segdeploy.metrics.confusion import ConfusionMatrix, accumulate, count_labels, label_names
from segdeploy.metrics.flips import FlipCount
from segdeploy.metrics.scores import Metric

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "class_accuracy": "segdeploy.metrics.scores:class_accuracy",
        "class_iou": "segdeploy.metrics.scores:class_iou",
        "dice": "segdeploy.metrics.scores:dice",
        "frequency_weighted_iou": "segdeploy.metrics.scores:frequency_weighted_iou",
        "mean_iou": "segdeploy.metrics.scores:mean_iou",
        "pixel_accuracy": "segdeploy.metrics.scores:pixel_accuracy",
    },
)

__all__ = [
    "METRICS",
    "ConfusionMatrix",
    "FlipCount",
    "Metric",
    "accumulate",
    "count_labels",
    "label_names",
]
