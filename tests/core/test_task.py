"""Logits become labels, margins and confidences as a slow loop over pixels says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, softmax

from segdeploy.core.task import (
    Task,
    decision_margin,
    ignore_value,
    label_dtype,
    num_logits,
    predict_confidence,
    predict_labels,
)


def _logits(classes: int, seed: int = 0, shape: tuple[int, int, int] = (2, 5, 7)) -> np.ndarray:
    """Small integers, so that ties are frequent."""
    rng = np.random.default_rng(seed)
    n, h, w = shape
    return rng.integers(-3, 4, (n, classes, h, w)).astype(np.float32)


@pytest.mark.parametrize("classes", [1, 2, 3, 11])
def test_multiclass_labels_and_margins_equal_a_loop_and_ties_go_to_the_lowest(
    classes: int,
) -> None:
    logits = _logits(classes)
    labels = predict_labels(logits, Task.MULTICLASS)
    margins = decision_margin(logits, Task.MULTICLASS)
    for n, y, x in np.ndindex(labels.shape):
        values = logits[n, :, y, x].tolist()
        assert labels[n, y, x] == values.index(max(values))
        ordered = sorted(values, reverse=True)
        expected = ordered[0] - ordered[1] if classes > 1 else math.inf
        assert margins[n, y, x] == expected


def test_binary_is_foreground_above_zero_only_and_its_margin_is_the_distance() -> None:
    values = np.array([-2.5, -1e-30, -0.0, 0.0, 1e-30, 3.0], np.float32)
    logits = values.reshape(1, 1, 2, 3)
    labels = predict_labels(logits, Task.BINARY)
    assert labels.ravel().tolist() == [0, 0, 0, 0, 1, 1]
    assert labels.dtype == np.uint8
    expected = [abs(v) for v in values.tolist()]
    assert decision_margin(logits, Task.BINARY).ravel().tolist() == expected


@pytest.mark.parametrize(
    ("classes", "dtype", "ignored"),
    [(2, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65535), (1000, np.uint16, 65535)],
)
def test_label_type_widens_before_an_id_could_mean_ignored(
    classes: int, dtype: type, ignored: int
) -> None:
    assert label_dtype(classes) == dtype
    assert ignore_value(classes) == ignored
    logits = np.zeros((1, classes, 1, 1), np.float32)
    logits[0, classes - 1] = 1
    labels = predict_labels(logits, Task.MULTICLASS)
    assert labels.dtype == dtype
    assert labels.item() == classes - 1
    assert labels.item() != ignored


@pytest.mark.parametrize("threshold", [0.0, 1.0, np.array([-1.0, 0.0, 2.0])])
def test_each_class_of_a_multilabel_task_is_decided_as_a_binary_task_is(
    threshold: float | np.ndarray,
) -> None:
    logits = _logits(3, seed=1)
    masks = predict_labels(logits, Task.MULTILABEL, threshold)
    margins = decision_margin(logits, Task.MULTILABEL)
    confidence = predict_confidence(logits, Task.MULTILABEL, threshold)
    assert masks.dtype == np.uint8
    assert confidence.dtype == np.float32
    for n, k, y, x in np.ndindex(logits.shape):
        cut = float(np.broadcast_to(threshold, 3)[k])
        value = float(logits[n, k, y, x])
        assert masks[n, k, y, x] == (value > cut)
        assert margins[n, k, y, x] == abs(value)
        assert confidence[n, k, y, x] == pytest.approx(expit(value if value > cut else -value))


def test_number_of_logits_is_one_for_a_binary_task() -> None:
    assert num_logits(Task.BINARY, 1) == 1
    assert num_logits(Task.BINARY, 2) == 1
    assert num_logits(Task.MULTICLASS, 11) == 11


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_confidence_is_scipys_softmax_and_sigmoid_of_the_decision(scale: float) -> None:
    logits = _logits(5, seed=3) * scale
    expected = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    found = predict_confidence(logits, Task.MULTICLASS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    binary = logits[:, :1]
    expected = expit(np.abs(binary[:, 0].astype(np.float64)))
    np.testing.assert_allclose(predict_confidence(binary, Task.BINARY), expected, rtol=1e-6)


def test_half_precision_logits_are_decided_like_their_float_values() -> None:
    logits = _logits(4, seed=5)
    half = logits.astype(np.float16)
    np.testing.assert_array_equal(
        predict_labels(half, Task.MULTICLASS), predict_labels(logits, Task.MULTICLASS)
    )
