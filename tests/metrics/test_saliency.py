"""MAE and max-F, against torchmetrics and a slow loop over thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.metrics.saliency import mae, max_f, saliency_counts

Image = tuple[NDArray[np.uint8], NDArray[np.float32]]


def _draw(seed: int, num_images: int) -> list[Image]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        label = (rng.random((11, 13)) < rng.uniform(0.1, 0.9)).astype(np.uint8)
        noise = rng.normal(0, rng.uniform(0.1, 0.8), label.shape)
        images.append((label, np.clip(label * 0.6 + 0.2 + noise, 0, 1).astype(np.float32)))
    return images


def _count(images: list[Image]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    histograms, errors = zip(*(saliency_counts(*image) for image in images), strict=True)
    return np.stack(histograms), np.stack(errors)


def _slow_max_f(images: list[Image]) -> float:
    best = 0.0
    for k in range(255):
        precisions, recalls = [], []
        for label, probability in images:
            found = probability.astype(float) * 255 >= k
            hits = int((found & (label == 1)).sum())
            precisions.append(hits / found.sum() if found.any() else 0.0)
            recalls.append(hits / (label == 1).sum())
        p, r = float(np.mean(precisions)), float(np.mean(recalls))
        best = max(best, 1.3 * p * r / (0.3 * p + r) if p * r else 0.0)
    return best


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), num_images=st.integers(1, 4))
def test_max_f_equals_a_slow_loop(seed: int, num_images: int) -> None:
    images = [image for image in _draw(seed, num_images) if image[0].any()]
    if images:
        assert max_f(_count(images)[0]) == pytest.approx(_slow_max_f(images), rel=1e-12)


def test_precision_and_recall_are_torchmetrics() -> None:
    prepare_torchvision()
    import torch
    from torchmetrics.functional.classification import binary_precision_recall_curve

    images = [
        (label, (np.floor(p * np.float32(255)).clip(0, 254) + np.float32(0.5)) / np.float32(255))
        for label, p in _draw(3, 5)
    ]  # Between the thresholds, so that no rounding decides.
    thresholds = torch.arange(255, dtype=torch.float64) / 255
    curves = [
        binary_precision_recall_curve(torch.from_numpy(p), torch.from_numpy(label), thresholds)[:2]
        for label, p in images
    ]
    precision, recall = (torch.stack([c[i][:-1] for c in curves]).double().mean(0) for i in (0, 1))
    expected = (1.3 * precision * recall / (0.3 * precision + recall)).max().item()
    assert max_f(_count(images)[0]) == pytest.approx(expected, rel=1e-6)


def test_mae_is_the_mean_of_torchmetrics_over_images() -> None:
    prepare_torchvision()
    import torch
    from torchmetrics.functional.regression import mean_absolute_error

    images = [(lab[: 3 + i], p[: 3 + i]) for i, (lab, p) in enumerate(_draw(1, 4))]
    expected = [
        mean_absolute_error(torch.from_numpy(p), torch.from_numpy(label).float()).item()
        for label, p in images
    ]
    assert mae(_count(images)[1]) == pytest.approx(np.mean(expected), rel=1e-6)


def test_ignored_pixels_count_nowhere() -> None:
    ((label, probability),) = _draw(2, 1)
    wide = np.concatenate([label, np.full_like(label, 255)])
    doubled = np.concatenate([probability, 1 - probability])
    for found, expected in zip(
        saliency_counts(wide, doubled), saliency_counts(label, probability), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_certain_pixels_reach_the_ends() -> None:
    label = np.array([[0, 1]], np.uint8)
    histogram, error = saliency_counts(label, np.array([[0, 1]], np.float32))
    assert max_f(histogram[None]) == 1
    assert mae(error[None]) == 0
    histogram, error = saliency_counts(label, np.array([[1, 0]], np.float32))
    assert mae(error[None]) == 1
    assert max_f(histogram[None]) == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))


def test_an_image_without_foreground_is_no_part_of_max_f() -> None:
    image, empty = _draw(4, 1)[0], np.zeros((11, 13), np.uint8)
    alone, both = _count([image])[0], _count([image, (empty, image[1])])[0]
    assert max_f(both) == max_f(alone)
    assert np.isnan(max_f(both[1:]))


def test_no_labelled_pixel_gives_nan() -> None:
    void = np.full((3, 3), 255, np.uint8)
    histogram, error = saliency_counts(void, np.zeros((3, 3), np.float32))
    assert np.isnan(mae(error[None]))
    assert np.isnan(max_f(histogram[None]))
