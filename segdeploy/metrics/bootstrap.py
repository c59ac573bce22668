"""How far a score depends on the choice of images: the percentile bootstrap (Efron 1979).

Images are drawn with replacement, as often as there are; the score of each draw is taken from the
sum of its counts, as the score itself is. Counts per image and class are enough, 3 K integers.
Pixels of one image are no independent draws, so that an interval over pixels would be far too
narrow; over images that resemble each other, such as frames of one video, it still is somewhat.

    draws = draw_counts(counts)
    interval(mean_iou(draws)), class_intervals(class_iou(draws), counts)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.scores import ClassCounts, Scores

NUM_DRAWS = 1000
LEVEL = 0.95
_BLOCK = 2**22  # Draws times images that are held at once: 32 MiB an array.

Interval = tuple[float, float]


def draw_counts(
    counts: NDArray[np.integer[Any]], *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> ClassCounts:
    """Return the summed counts of every draw, (num_draws, K) each; nothing is drawn of no image.

    Args:
        counts: Per image hits, truth, predicted: (images, 3, K).
        num_draws: Draws; the ends of an interval are themselves random, less so with more.
        seed: The same seed and counts give the same draws.
    """
    num_images = len(counts)
    rng = np.random.default_rng(seed)
    # Whole numbers below 2^53 are exact in float64, whose product is much faster.
    flat = counts.reshape(num_images, -1).astype(np.float64)
    chances, block = np.full(num_images, 1 / num_images), max(1, _BLOCK // num_images)
    sums = np.empty((num_draws, flat.shape[1]))
    for start in range(0, num_draws, block):
        part = sums[start : start + block]
        part[:] = rng.multinomial(num_images, chances, size=len(part)) @ flat
    return ClassCounts.stacked(sums.reshape(num_draws, *counts.shape[1:]))


def interval(scores: Scores, *, level: float = LEVEL) -> Interval | None:
    """Return the ends that hold `level` of the draws' scores (draws,); NaN does not count."""
    known = scores[~np.isnan(scores)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def class_intervals(
    scores: Scores, counts: NDArray[np.integer[Any]], *, level: float = LEVEL
) -> list[Interval | None]:
    """Return one interval per class of the draws' scores (draws, K).

    None for a class that fewer than two images (of `counts`, see `draw_counts`) are labelled with:
    every draw that has it has the same pixels of it, and its interval would feign certainty.
    """
    num_labelled = (counts[:, 1] > 0).sum(0)
    return [
        interval(column, level=level) if count > 1 else None
        for column, count in zip(scores.T, num_labelled.tolist(), strict=True)
    ]
