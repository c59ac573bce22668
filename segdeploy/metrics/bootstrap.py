"""How far a score depends on the choice of images: the percentile bootstrap (Efron 1979).

Images are drawn with replacement, as often as there are; the score of each draw is taken from the
sum of its counts, as the score itself is. Counts per image and class are enough, 3 K integers.
Pixels of one image are no independent draws, so that an interval over pixels would be far too
narrow; over images that resemble each other, such as frames of one video, it still is somewhat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.scores import ClassCounts, Score

NUM_DRAWS = 1000
LEVEL = 0.95


def bootstrap_interval(
    counts: NDArray[np.integer[Any]],
    score: Score,
    *,
    level: float = LEVEL,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the interval that holds the score of `level` of the draws; None below two images.

    Args:
        counts: Per image hits, truth, predicted: (images, 3, K).
        score: Of `core.scores`, one number a draw; a draw where it is NaN does not count.
        level: Share of draws inside, in (0, 1).
        num_draws: Draws; the ends are themselves random, less so with more.
        seed: The same seed and counts give the same interval.
    """
    num_images = len(counts)
    if num_images < 2:
        return None
    rng = np.random.default_rng(seed)
    times = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_draws)
    # Whole numbers below 2^53 are exact in float64, whose product is much faster.
    sums = times.astype(np.float64) @ counts.reshape(num_images, -1).astype(np.float64)
    scores = score(ClassCounts.stacked(sums.reshape(num_draws, *counts.shape[1:])))
    known = scores[~np.isnan(scores)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
