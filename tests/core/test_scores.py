"""Scores against torchmetrics, and what an absent class does to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeploy.core.scores import ClassCounts
from segdeploy.metrics import METRICS

OF_CLASS_COUNTS = [n for n in METRICS if n not in {"mae", "max_f"} and "boundary" not in n]


def _score(name: str, confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(METRICS.get(name)(ClassCounts.of(confusion)))


def _draw(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (2, 7, 9))
    label[rng.random(label.shape) < 0.2] = 255
    return label, rng.integers(0, 4, label.shape)


def _confusion(label: NDArray[np.int64], prediction: NDArray[np.int64]) -> NDArray[np.int64]:
    matrix = np.zeros((4, 4), np.int64)
    np.add.at(matrix, (label[label != 255], prediction[label != 255]), 1)
    return matrix


@pytest.mark.parametrize("seed", range(10))
def test_scores_equal_torchmetrics(seed: int) -> None:
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    import torch
    from torchmetrics.functional import classification as reference

    label, prediction = _draw(seed)
    truth, guess = torch.from_numpy(label), torch.from_numpy(prediction)
    options: dict[str, Any] = {"num_classes": 4, "ignore_index": 255}
    cases: tuple[tuple[str, Any, str], ...] = (
        ("class_iou", reference.multiclass_jaccard_index, "none"),
        ("class_accuracy", reference.multiclass_recall, "none"),
        ("class_dice", reference.multiclass_f1_score, "none"),
        ("mean_iou", reference.multiclass_jaccard_index, "macro"),
        ("mean_accuracy", reference.multiclass_recall, "macro"),
        ("mean_dice", reference.multiclass_f1_score, "macro"),
        ("pixel_accuracy", reference.multiclass_accuracy, "micro"),
        ("frequency_weighted_iou", reference.multiclass_jaccard_index, "weighted"),
    )
    for name, function, average in cases:
        expected = function(guess, truth, average=average, **options).numpy()
        found = _score(name, _confusion(label, prediction))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_foreground_scores_equal_torchmetrics_of_a_binary_task(seed: int) -> None:
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    import torch
    from torchmetrics.functional import classification as reference

    rng = np.random.default_rng(seed)
    label, logits = rng.integers(0, 2, (7, 9)), rng.normal(size=(7, 9))
    matrix = np.zeros((2, 2), np.int64)
    np.add.at(matrix, (label, (logits > 0).astype(int)), 1)
    guess, truth = torch.from_numpy(logits).sigmoid(), torch.from_numpy(label)
    iou = reference.binary_jaccard_index(guess, truth).item()
    dice = reference.binary_f1_score(guess, truth).item()
    assert _score("foreground_iou", matrix) == pytest.approx(iou, rel=1e-6)
    assert _score("foreground_dice", matrix) == pytest.approx(dice, rel=1e-6)


def test_an_absent_class_is_nan_and_not_part_of_any_mean() -> None:
    confusion = np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(_score("class_iou", confusion), [0.75, 1.0, np.nan])
    assert _score("mean_iou", confusion) == pytest.approx(0.875)
    assert _score("mean_accuracy", confusion) == pytest.approx(0.875)
    assert _score("mean_dice", confusion) == pytest.approx((6 / 7 + 1) / 2)
    assert _score("frequency_weighted_iou", confusion) == pytest.approx(0.875)


@pytest.mark.parametrize("name", OF_CLASS_COUNTS)
def test_no_labelled_pixel_gives_nan_everywhere(name: str) -> None:
    assert np.isnan(_score(name, np.array([[0, 0], [0, 0]]))).all()


@pytest.mark.parametrize("name", OF_CLASS_COUNTS)
def test_leading_axes_are_scored_on_their_own(name: str) -> None:
    matrices = np.random.default_rng(0).integers(0, 9, (5, 3, 3))
    matrices[1, 2] = 0
    for matrix, found in zip(matrices, _score(name, matrices), strict=True):
        np.testing.assert_allclose(found, _score(name, matrix))
