"""The bootstrap interval, against SciPy's and against what sampling theory says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from segdeploy.core.scores import ClassCounts, Score, class_iou, mean_iou, pixel_accuracy
from segdeploy.metrics import bootstrap
from segdeploy.metrics.bootstrap import Interval, class_intervals, draw_counts, interval


def _draw(num_images: int, seed: int = 0, num_classes: int = 3) -> NDArray[np.int64]:
    """Per-image counts of images whose quality differs."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((num_images, 3, num_classes), np.int64)
    for image in counts:
        label = rng.integers(0, num_classes, 400)
        guess = np.where(rng.random(400) < rng.beta(8, 2), label, rng.integers(0, num_classes, 400))
        matrix = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(matrix, (label, guess), 1)
        image[:] = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return counts


def bootstrap_interval(
    counts: NDArray[np.int64], score: Score, *, level: float = 0.95, **options: int
) -> Interval | None:
    return interval(score(draw_counts(counts, **options)), level=level)


def _slow_mean_iou(indices: NDArray[Any], counts: NDArray[np.int64]) -> float:
    hits, truth, predicted = sum(counts[int(i)] for i in indices)
    values = [h / (t + p - h) for h, t, p in zip(hits, truth, predicted, strict=True) if t]
    return float(np.mean(values))


def test_the_interval_is_scipys() -> None:
    counts = _draw(40)
    expected = stats.bootstrap(
        (np.arange(40),), lambda i: _slow_mean_iou(i, counts), vectorized=False,
        method="percentile", n_resamples=4000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(counts, mean_iou, num_draws=4000)
    assert found is not None
    width = expected.high - expected.low
    assert found[0] == pytest.approx(expected.low, abs=0.06 * width)
    assert found[1] == pytest.approx(expected.high, abs=0.06 * width)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Images of known accuracy: 90 % intervals hold the mean in about 90 % of experiments."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        right = rng.binomial(100, rng.beta(8, 2, 40))
        counts = np.stack([np.stack([right, np.full(40, 100), right])], -1).transpose(1, 0, 2)
        low, high = bootstrap_interval(counts, pixel_accuracy, level=0.9, num_draws=300) or (0, 0)
        covered += low <= 0.8 <= high
    assert 0.83 <= covered / 200 <= 0.95


def test_a_higher_level_is_wider_and_more_images_are_narrower() -> None:
    def width(counts: NDArray[np.int64], level: float) -> float:
        low, high = bootstrap_interval(counts, mean_iou, level=level) or (0.0, 0.0)
        return high - low

    few, many = _draw(20), _draw(320)
    assert 0 < width(few, 0.5) < width(few, 0.95) < width(few, 0.99)
    assert width(many, 0.95) == pytest.approx(width(few, 0.95) / 4, rel=0.4)


def test_a_seed_gives_the_same_interval_again() -> None:
    counts = _draw(10)
    assert bootstrap_interval(counts, mean_iou) == bootstrap_interval(counts, mean_iou)
    assert bootstrap_interval(counts, mean_iou) != bootstrap_interval(counts, mean_iou, seed=1)


def test_draws_without_a_class_do_not_count_it() -> None:
    counts = np.zeros((6, 3, 2), np.int64)
    counts[:, :, 0] = 10
    counts[0, 1:, 1] = 5  # One image alone has class 1, wholly missed there.
    counts[0, 0, 1] = 0
    assert bootstrap_interval(counts, mean_iou) == pytest.approx((0.5, 1.0))


def test_no_labelled_image_has_no_interval() -> None:
    assert bootstrap_interval(np.zeros((5, 3, 2), np.int64), mean_iou) is None


def test_equal_images_have_an_interval_without_width() -> None:
    counts = np.repeat(_draw(1), 7, axis=0)
    score = float(mean_iou(ClassCounts.stacked(counts.sum(0))))
    assert bootstrap_interval(counts, mean_iou) == pytest.approx((score, score))


def test_each_class_has_scipys_interval() -> None:
    counts = _draw(40)

    def slow(indices: NDArray[Any], label: int) -> float:
        hits, truth, predicted = counts[indices.astype(int), :, label].sum(0)
        return float(hits / (truth + predicted - hits))

    draws = draw_counts(counts, num_draws=4000)
    for label, found in enumerate(class_intervals(class_iou(draws), counts)):
        expected = stats.bootstrap(
            (np.arange(40),), lambda i, label=label: slow(i, label), vectorized=False,
            method="percentile", n_resamples=4000, rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        width = expected.high - expected.low
        assert found == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_a_class_in_fewer_than_two_images_has_no_interval() -> None:
    counts = _draw(5, num_classes=4)
    counts[1:, :, 1] = 0  # In one image.
    counts[:, :, 2] = 0  # In none.
    counts[2:, :, 3] = 0  # In two.
    found = class_intervals(class_iou(draw_counts(counts)), counts)
    assert [ends is None for ends in found] == [False, True, True, False]


def test_draws_in_blocks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_counts(_draw(10), num_draws=50)
    monkeypatch.setattr(bootstrap, "_BLOCK", 70)  # Seven draws at a time.
    parts = draw_counts(_draw(10), num_draws=50)
    np.testing.assert_array_equal(parts.hits, whole.hits)
    np.testing.assert_array_equal(parts.predicted, whole.predicted)
