"""Saliency of a binary task: mean absolute error and max-F of the foreground's probability.

As the field reports them (Perazzi 2012; Achanta 2009, beta^2 = 0.3): both per image, then averaged
over images. Max-F is the largest F of the averaged precision and recall over the 255 thresholds
k / 255: a pixel is foreground from that probability on. Precision is 0 where nothing is predicted.
An image without labelled foreground has no recall and is not part of max-F. Counts are integers,
so that any split over processes adds up; the error is counted in steps of 2^-24, a float32's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.scores import divide

Counts = NDArray[np.integer[Any]]

NUM_THRESHOLDS = 255
BETA_SQUARED = 0.3
_STEPS = 2**24


def saliency_counts(
    label: NDArray[np.integer[Any]], probability: NDArray[np.floating[Any]], ignore: int = 255
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what one image says: histogram (2, 255) and error (2,).

    Args:
        label: 0 and 1, with the ignore value (H, W).
        probability: Of the foreground, in [0, 1] (H, W).
        ignore: The label that is not counted.

    Returns:
        Pixels of background and foreground by probability bin; sum of absolute errors in steps of
        2^-24, and number of pixels.
    """
    counted = label != ignore
    truth = label[counted] == 1
    found = probability[counted].astype(np.float64)
    bins = np.minimum((found * NUM_THRESHOLDS).astype(np.int64), NUM_THRESHOLDS - 1)
    pairs = truth * NUM_THRESHOLDS + bins
    histogram = np.bincount(pairs, minlength=2 * NUM_THRESHOLDS).reshape(2, NUM_THRESHOLDS)
    error = np.rint(np.abs(found - truth) * _STEPS).astype(np.int64).sum()
    return histogram, np.array([error, truth.size], np.int64)


def mae(errors: Counts) -> float:
    """Return the mean absolute error in [0, 1] of images' errors (images, 2); NaN for none."""
    per_image = divide(errors[:, 0], errors[:, 1]) / _STEPS
    known = per_image[~np.isnan(per_image)]
    return float(known.mean()) if known.size else float("nan")


def max_f(histograms: Counts) -> float:
    """Return the largest F in [0, 1] of images' histograms (images, 2, 255); NaN for none."""
    from_above = histograms[:, :, ::-1].cumsum(-1)
    wrong, right = from_above[:, 0], from_above[:, 1]
    has_foreground = right[:, -1] > 0
    if not has_foreground.any():
        return float("nan")
    precision = np.nan_to_num(divide(right, right + wrong))[has_foreground].mean(0)
    recall = (right / np.maximum(right[:, -1:], 1))[has_foreground].mean(0)
    weighted = BETA_SQUARED * precision + recall
    f = (1 + BETA_SQUARED) * np.nan_to_num(divide(precision * recall, weighted))
    return float(f.max())
