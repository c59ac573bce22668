from __future__ import annotations

import numpy as np
import pytest

from segdeploy.data.pictures import color_labels, comparison, overlay, palette


@pytest.mark.parametrize("num_classes", [1, 2, 3, 21, 254, 255, 300])
def test_palette_has_a_colour_of_its_own_for_every_label(num_classes: int) -> None:
    colors = palette(num_classes)
    assert colors.shape == (256, 3)
    assert colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == 256
    assert np.ptp(colors[255].astype(int)) == 0, "ignored pixels are grey"
    assert np.array_equal(colors, palette(num_classes))


def test_first_colours_are_far_from_each_other() -> None:
    colors = palette(21)[:21].astype(int)
    distance = np.sqrt(((colors[:, None] - colors[None]) ** 2).sum(-1))
    assert distance[~np.eye(21, dtype=bool)].min() > 30


def test_the_same_class_keeps_its_colour_whatever_the_number_of_classes() -> None:
    assert np.array_equal(palette(3)[:3], palette(200)[:3])


def test_overlay_blends_image_and_colour_by_alpha() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 7))
    found = overlay(image, labels, 3, alpha=0.25)
    colors = palette(3).astype(float)
    for row in range(5):
        for column in range(7):
            want = 0.75 * image[row, column] + 0.25 * colors[labels[row, column]]
            assert np.abs(found[row, column] - want).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_overlay_ends_at_the_image_and_at_the_colours(alpha: float) -> None:
    image = np.full((3, 4, 3), 77, np.uint8)
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    want = image if alpha == 0 else color_labels(labels, 12)
    assert np.array_equal(overlay(image, labels, 12, alpha), want)


def test_wide_labels_are_coloured_and_only_65535_is_ignored() -> None:
    labels = np.array([[0, 255, 256, 65535]], np.uint16)
    colors = color_labels(labels, 300)[0]
    assert np.array_equal(colors[3], palette(300)[255])
    assert not np.array_equal(colors[1], palette(300)[255])


def has_color(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], color: object) -> bool:
    return bool((picture == np.array(color)).all(-1).any())


WRONG = (255, 45, 85)


def test_comparison_marks_wrong_pixels_and_no_ignored_ones() -> None:
    image = np.full((240, 320, 3), 90, np.uint8)
    label = np.zeros((240, 320), np.uint8)
    label[:120] = 255
    prediction = label * 0
    assert not has_color(comparison(image, label, prediction, 3), WRONG)
    prediction[:100] = 2  # Still under ignored pixels only.
    assert not has_color(comparison(image, label, prediction, 3), WRONG)
    prediction[200:210] = 2
    assert has_color(comparison(image, label, prediction, 3), WRONG)


def test_comparison_holds_the_image_itself() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (240, 320, 3), np.uint8)
    label = np.zeros((240, 320), np.uint8)
    sheet = comparison(image, label, label, 2)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (1, 320))[:, :, 0]
    assert (windows == image[0, :, 0]).all(-1).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (97, 513), (2000, 1500), (64, 64)])
def test_comparison_of_any_size_fits_a_page(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    label = np.zeros(size, np.uint8)
    names = [f"a rather long class name {index}" for index in range(40)]
    label.ravel()[: min(40, label.size)] = np.arange(min(40, label.size))
    sheet = comparison(image, label, label, 40, names)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert 200 <= max(sheet.shape) <= 2100


def test_a_prediction_of_another_size_is_brought_to_the_image() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    label = np.zeros((240, 320), np.uint8)
    label[:, 160:] = 1
    small = np.zeros((24, 32), np.uint8)
    small[:, 16:] = 1
    assert np.array_equal(comparison(image, label, small, 3), comparison(image, label, label, 3))
