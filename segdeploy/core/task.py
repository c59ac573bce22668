"""What the logits mean. One place decides how logits become a prediction, for every stage.

Letters: N batch, K classes, H height, W width.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.unsignedinteger[Any]]
Margins = NDArray[np.floating[Any]]

IGNORE = 255
IGNORE_WIDE = 65535


class Task(StrEnum):
    """What is asked of a pixel.

    `multiclass`: one of K classes, by argmax. `binary`: K = 1, foreground where logit > 0.
    `multilabel`: each of K classes is a yes or no of its own, yes where its logit > 0.
    """

    MULTICLASS = "multiclass"
    BINARY = "binary"
    MULTILABEL = "multilabel"


def label_dtype(num_classes: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """Return uint8 up to 255 classes, else uint16: the ignore value must stay free."""
    return np.dtype(np.uint8) if num_classes <= IGNORE else np.dtype(np.uint16)


def ignore_value(num_classes: int) -> int:
    """Return the label value that no loss and no metric counts: 255, or 65535 from K = 256 on."""
    return IGNORE if num_classes <= IGNORE else IGNORE_WIDE


def num_logits(task: Task, num_labels: int) -> int:
    """Return K, the channels of the logits: 1 for a binary task, else the number of classes."""
    return 1 if task is Task.BINARY else num_labels


def predict_labels(
    logits: NDArray[np.floating], task: Task, threshold: float | NDArray[np.floating] = 0.0
) -> Labels:
    """Return the label map (N, H, W) of logits (N, K, H, W); ties go to the lowest class.

    A multilabel task has one mask of 0 and 1 for each class, (N, K, H, W).

    Args:
        logits: Of any float type.
        task: What they mean.
        threshold: In logit units, above which a binary or multilabel task says yes; 0 is the
            probability one half. For multilabel also one for each class (K,).
    """
    if task is Task.MULTICLASS:
        labels: Labels = logits.argmax(axis=1).astype(label_dtype(logits.shape[1]))
        return labels
    yes: Labels = (logits > np.reshape(threshold, (-1, 1, 1))).astype(np.uint8)
    return yes[:, 0] if task is Task.BINARY else yes


def decision_margin(logits: NDArray[np.floating], task: Task) -> Margins:
    """Return how far each pixel (N, H, W) is from another decision, in logit units, >= 0.

    Multiclass: top logit minus the second. Binary: |logit|, and so for each class of a multilabel
    task (N, K, H, W).
    """
    if task is not Task.MULTICLASS:
        distance: Margins = np.abs(logits)
        return distance[:, 0] if task is Task.BINARY else distance
    if logits.shape[1] == 1:  # One class: no other decision is possible.
        return np.full_like(logits[:, 0], np.inf)
    top_two = np.partition(logits, -2, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):  # Of infinite logits there is none: NaN.
        margin: Margins = top_two[:, 1] - top_two[:, 0]
    return margin


def predict_confidence(
    logits: NDArray[np.floating], task: Task, threshold: float | NDArray[np.floating] = 0.0
) -> NDArray[np.float32]:
    """Return the probability of the predicted label (N, H, W), in (0, 1].

    Multiclass: the largest softmax value. Binary: that of what `predict_labels` says at the same
    threshold, so background counts as well; likewise for each class of a multilabel task
    (N, K, H, W).
    """
    if task is not Task.MULTICLASS:
        towards = np.where(logits > np.reshape(threshold, (-1, 1, 1)), logits, -logits)
        small = np.exp(-np.abs(towards))  # Of the absolute value: exp must not overflow.
        chance: NDArray[np.floating] = np.where(towards >= 0, 1, small) / (1 + small)
        return (chance[:, 0] if task is Task.BINARY else chance).astype(np.float32)
    shifted = logits - logits.max(axis=1, keepdims=True)
    largest: NDArray[np.floating] = 1 / np.exp(shifted).sum(axis=1)
    return largest.astype(np.float32)
