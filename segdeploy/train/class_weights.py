"""Weights of classes from how often they occur in the training labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task, ignore_value
from segdeploy.data import Dataset


def class_weights(dataset: Dataset, on_item: Callable[[], None] | None = None) -> tuple[float, ...]:
    """Return sqrt(median frequency / frequency) per class of the labels.

    Source: median frequency balancing of Eigen & Fergus, 2015, under a square root, which lifts
    rare classes without drowning frequent ones. A class that never occurs gets weight 1.

    Raises:
        ConfigError: If the data are multilabel, whose classes do not share the pixels.
    """
    if dataset.task is Task.MULTILABEL:
        raise ConfigError(
            f"Class weights come from classes that share the pixels; {dataset.name} is multilabel.",
            hint="Leave class_weights out.",
        )
    num_ids = 2 if dataset.task is Task.BINARY else len(dataset.classes)
    counts = np.zeros(num_ids, np.int64)
    for index in range(len(dataset)):
        label = dataset[index].label
        counts += np.bincount(label[label != ignore_value(num_ids)], minlength=num_ids)
        if on_item is not None:
            on_item()
    share = counts / max(1, counts.sum())
    median = float(np.median(share[share > 0])) if counts.any() else 1.0
    weights = np.where(share > 0, np.sqrt(median / np.maximum(share, 1e-12)), 1.0)
    return tuple(weights.tolist())
