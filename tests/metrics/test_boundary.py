"""Outlines, against SciPy class by class and against a slow loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segdeploy.metrics.boundary import (
    band_counts,
    class_boundary_f,
    class_boundary_iou,
    contour_counts,
    near_other_class,
)

Map = NDArray[np.uint8]
SQUARE = np.ones((3, 3), np.bool_)


def _draw(seed: int, num_classes: int, *, void: bool = True) -> tuple[Map, Map]:
    """Blobs, and the same blobs moved and disturbed."""
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(3, 90, 2))
    noise = ndimage.gaussian_filter(rng.normal(size=(num_classes, *size)), (0, 4, 4))
    label = noise.argmax(0).astype(np.uint8)
    prediction = np.roll(label, tuple(rng.integers(-2, 3, 2)), (0, 1))
    flips = rng.random(size) < 0.01
    prediction = np.where(flips, rng.integers(0, num_classes, size), prediction).astype(np.uint8)
    if void:
        label[ndimage.gaussian_filter(rng.normal(size=size), 3) > 0.12] = 255
    return label, prediction


def _scipy_bands(ids: Map, ignored: NDArray[np.bool_], num_classes: int) -> NDArray[np.bool_]:
    """Return masks minus their erosion (Cheng 2021), by class; what is ignored erodes nothing."""
    reach = max(1, round(0.02 * (ids.shape[0] ** 2 + ids.shape[1] ** 2) ** 0.5))
    bands = []
    for k in range(num_classes):
        mask = (ids == k) | ignored
        inner = ndimage.binary_erosion(mask, SQUARE, iterations=reach)  # Beyond the frame: 0.
        bands.append((ids == k) & ~inner & ~ignored)
    return np.stack(bands)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), num_classes=st.integers(1, 6))
def test_bands_are_masks_minus_their_erosion(seed: int, num_classes: int) -> None:
    label, prediction = _draw(seed, num_classes)
    ignored = label == 255
    truth, found = (_scipy_bands(ids, ignored, num_classes) for ids in (label, prediction))
    expected = [(truth & found).sum((1, 2)), truth.sum((1, 2)), found.sum((1, 2))]
    np.testing.assert_array_equal(band_counts(label, prediction, num_classes), expected)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), reach=st.integers(1, 40), frame=st.booleans())
def test_nearness_is_a_minimum_and_maximum_filter(seed: int, reach: int, frame: bool) -> None:
    ids, _ = _draw(seed, 4, void=False)
    options: dict[str, Any] = {"size": 2 * reach + 1, "mode": "nearest"}
    expected = (ndimage.minimum_filter(ids, **options) != ids) | (
        ndimage.maximum_filter(ids, **options) != ids
    )
    if frame:
        rows, columns = (np.arange(n) for n in ids.shape)
        for places, axis in ((rows, 0), (columns, 1)):
            near = (places < reach) | (places >= len(places) - reach)
            expected |= near[:, None] if axis == 0 else near[None]
    found = near_other_class(ids, reach, np.zeros(ids.shape, np.bool_), frame=frame)
    np.testing.assert_array_equal(found, expected)


def _scipy_contours(
    label: Map, prediction: Map, num_classes: int, tolerance: float
) -> NDArray[np.int64]:
    ignored = label == 255
    rows = np.zeros((4, num_classes), np.int64)
    for k in range(num_classes):
        outlines = []
        for ids in (label, prediction):
            others = ndimage.binary_dilation((ids != k) & ~ignored, SQUARE)
            outlines.append((ids == k) & others & ~ignored)
        for row, (own, other) in ((0, outlines[::-1]), (2, outlines)):
            far = np.full(own.shape, np.inf)
            if other.any():
                far = ndimage.distance_transform_edt(~other)
            rows[row : row + 2, k] = (own & (far <= tolerance)).sum(), own.sum()
    return rows


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    num_classes=st.integers(1, 6),
    tolerance=st.sampled_from([0.0, 0.8, 1.0, 1.5, 2.0, 3.7, 5.0, 120.0]),
)
def test_contours_match_within_a_euclidean_distance(
    seed: int, num_classes: int, tolerance: float
) -> None:
    label, prediction = _draw(seed, num_classes)
    found = contour_counts(label, prediction, num_classes, tolerance=tolerance)
    expected = _scipy_contours(label, prediction, num_classes, tolerance)
    np.testing.assert_array_equal(found, expected)


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    label, prediction = _draw(0, 3)
    large = [np.kron(ids, np.ones((8, 8), np.uint8)) for ids in (label, prediction)]
    expected = _scipy_contours(large[0], large[1], 3, 0.0075 * float(np.hypot(*large[0].shape)))
    np.testing.assert_array_equal(contour_counts(large[0], large[1], 3), expected)


def test_more_classes_than_a_word_has_bits() -> None:
    rng = np.random.default_rng(0)
    label, prediction = (np.kron(rng.integers(0, 150, (9, 9)), np.ones((3, 3))) for _ in range(2))
    maps = label.astype(np.uint8), prediction.astype(np.uint8)
    found = contour_counts(*maps, 150, tolerance=4)
    assert found[0, 64:].any()
    np.testing.assert_array_equal(found, _scipy_contours(*maps, 150, 4))


def test_wide_ids_keep_their_own_ignore_value() -> None:
    label, prediction = _draw(5, 4)
    wide = np.where(label == 255, np.uint16(65535), label)
    narrow = contour_counts(label, prediction, 4)
    np.testing.assert_array_equal(
        contour_counts(wide, prediction.astype(np.uint16), 4, 65535), narrow
    )


def test_boundary_f_is_the_mean_over_images_that_show_the_class() -> None:
    images = [_draw(seed, 5) for seed in range(6)]
    counts = np.stack([contour_counts(*image, 5) for image in images])
    for k, found in enumerate(class_boundary_f(counts)):
        values = []
        for matched_found, all_found, matched_true, all_true in counts[:, :, k].tolist():
            if all_found + all_true:
                p = matched_found / all_found if all_found else 0.0
                r = matched_true / all_true if all_true else 0.0
                values.append(2 * p * r / (p + r) if p + r else 0.0)
        assert found == pytest.approx(np.mean(values))


def test_a_class_without_a_true_outline_is_absent() -> None:
    label, prediction = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    label[:, 4:] = prediction[:, 4:] = 1
    prediction[0, 0] = 2
    f = class_boundary_f(contour_counts(label, prediction, 3)[None])
    iou = class_boundary_iou(band_counts(label, prediction, 3)[None])
    assert np.isnan(f).tolist() == np.isnan(iou).tolist() == [False, False, True]
    assert f[1] == iou[1] == 1
    assert f[0] < 1
    assert iou[0] < 1


def test_boundary_iou_adds_counts_over_images() -> None:
    counts = np.stack([band_counts(*_draw(seed, 3), 3) for seed in range(4)])
    hits, truth, found = counts.sum(0)
    np.testing.assert_allclose(class_boundary_iou(counts), hits / (truth + found - hits))


def test_a_perfect_prediction_scores_one_whatever_is_ignored() -> None:
    label, _ = _draw(7, 4)
    guess = np.where(label == 255, 0, label).astype(np.uint8)
    for scores in (
        class_boundary_f(contour_counts(label, guess, 4)[None]),
        class_boundary_iou(band_counts(label, guess, 4)[None]),
    ):
        assert (scores[~np.isnan(scores)] == 1).all()
        assert (~np.isnan(scores)).any()
