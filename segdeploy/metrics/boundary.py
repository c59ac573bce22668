"""How good are the outlines? Boundary IoU (Cheng 2021) and boundary F (Csurka 2013).

- *Boundary IoU*: IoU of the pixels that lie within d of their own class's outline, in the truth and
  in the prediction; d is 2 % of the image's diagonal, as published, in steps to any of 8
  neighbours; the image's frame is an outline. Counts add up over images, like those of IoU.
- *Boundary F*: the share of predicted contour pixels that have a true contour pixel of the same
  class within a Euclidean distance (0.75 % of the diagonal), and the reverse; their harmonic mean
  per image and class, then the mean over the images that have such a contour on either side.
  A contour pixel has another class among its 8 neighbours; the image's frame is no contour.

Ignored pixels have no class in either map: nothing is counted there, and their edge is no outline.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.scores import ClassCounts, class_iou, divide

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

IOU_SHARE = 0.02
F_SHARE = 0.0075
_NONE = np.uint64(0)
_WORD = 64  # Classes that one pass over an image can hold, a bit each.


def diagonal_share(shape: tuple[int, ...], share: float) -> float:
    """Return a share of the diagonal of (H, W), in pixels."""
    return share * math.hypot(*shape)


def band_counts(
    label: Labels, prediction: Labels, num_classes: int, ignore: int = 255
) -> NDArray[np.int64]:
    """Return hits, truth, predicted (3, K) among the pixels near their own outline.

    Args:
        label: Class ids (H, W) with the ignore value.
        prediction: Class ids (H, W).
        num_classes: K.
        ignore: The label that is not counted.
    """
    reach = max(1, round(diagonal_share(label.shape, IOU_SHARE)))
    ignored = label == ignore
    bands = [
        near_other_class(ids, reach, ignored, frame=True) & ~ignored for ids in (label, prediction)
    ]
    hits = bands[0] & bands[1] & (label == prediction)
    chosen = (label[hits], label[bands[0]], prediction[bands[1]])
    return np.stack([np.bincount(ids, minlength=num_classes) for ids in chosen])


def contour_counts(
    label: Labels,
    prediction: Labels,
    num_classes: int,
    ignore: int = 255,
    tolerance: float | None = None,
) -> NDArray[np.int64]:
    """Return (4, K): found contour pixels that match, all found, true ones that match, all true.

    Args:
        label: Class ids (H, W) with the ignore value.
        prediction: Class ids (H, W).
        num_classes: K.
        ignore: The label that is not counted.
        tolerance: Distance in pixels; by default `F_SHARE` of the diagonal.
    """
    radius = diagonal_share(label.shape, F_SHARE) if tolerance is None else tolerance
    ignored = label == ignore
    truth, found = (
        near_other_class(ids, 1, ignored, frame=False) & ~ignored for ids in (label, prediction)
    )
    rows = []
    for mask, ids, other, other_ids in (
        (found, prediction, truth, label), (truth, label, found, prediction),
    ):  # fmt: skip
        matched = mask & _has_own_class_near(ids, other, other_ids, num_classes, radius)
        rows += [np.bincount(ids[m], minlength=num_classes) for m in (matched, mask)]
    return np.stack(rows)


def class_boundary_f(contours: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return boundary F per class (K,) in [0, 1] of images' counts (images, 4, K).

    NaN for a class without a true contour in any image: it is absent, as in `core.scores`.
    """
    precision = np.nan_to_num(divide(contours[:, 0], contours[:, 1]))
    recall = np.nan_to_num(divide(contours[:, 2], contours[:, 3]))
    f = np.nan_to_num(divide(2 * precision * recall, precision + recall))
    shown = contours[:, 1] + contours[:, 3] > 0
    has_truth = contours[:, 3].sum(0) > 0
    return divide((f * shown).sum(0), np.where(has_truth, shown.sum(0), 0))


def class_boundary_iou(bands: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return boundary IoU per class (K,) in [0, 1] of images' counts (images, 3, K)."""
    return class_iou(ClassCounts.stacked(bands.sum(0)))


def near_other_class(ids: Labels, reach: int, ignored: Mask, *, frame: bool) -> Mask:
    """Return where another class lies within `reach` (8 neighbours), or with `frame` the edge."""
    low, high = (np.where(ignored, neutral, ids.astype(np.int32)) for neutral in (2**30, -1))
    near: Mask = _spread(low, reach, np.minimum) != ids
    near |= _spread(high, reach, np.maximum) != ids
    if frame:
        inner = np.zeros_like(near)
        inner[reach:-reach, reach:-reach] = True
        near |= ~inner
    return near


def _spread(values: NDArray[Any], reach: int, join: np.ufunc) -> NDArray[Any]:
    """Return `join` over the square of side 2 reach + 1 around each pixel, cut at the frame."""
    for axis, length in enumerate(values.shape):
        places, done = np.arange(length), 0
        while done < reach:  # Steps at most double what is covered: no pixel is skipped.
            step = min(reach - done, 2 * done + 1)
            before, after = (
                values.take((places + shift).clip(0, length - 1), axis) for shift in (-step, step)
            )
            values = join(values, join(before, after))
            done += step
    return values


def _has_own_class_near(
    ids: Labels, other: Mask, other_ids: Labels, num_classes: int, radius: float
) -> Mask:
    """Return where a pixel of mask `other` with the same class lies within a Euclidean `radius`."""
    near = np.zeros(ids.shape, np.bool_)
    for first in range(0, num_classes, _WORD):
        bit = _bits(ids, first)
        near |= (_spread_disc(np.where(other, _bits(other_ids, first), _NONE), radius) & bit) != 0
    return near


def _bits(ids: Labels, first: int) -> NDArray[np.uint64]:
    """Return one bit per class `first` to `first` + 63, no bit for others."""
    place = ids.astype(np.int64) - first
    inside = (place >= 0) & (place < _WORD)
    return np.where(inside, np.uint64(1) << np.where(inside, place, 0).astype(np.uint64), _NONE)


def _spread_disc(bits: NDArray[np.uint64], radius: float) -> NDArray[np.uint64]:
    """Return the union of bits over the disc around each pixel, row by row from the disc's ends."""
    total, row, width = np.zeros_like(bits), bits.copy(), 0
    for rise in range(int(radius), -1, -1):
        while (width + 1) ** 2 + rise**2 <= radius**2:
            width += 1
            row[:, width:] |= bits[:, :-width]
            row[:, :-width] |= bits[:, width:]
        kept = max(0, len(row) - rise)
        total[rise:] |= row[:kept]
        total[:kept] |= row[rise:]
    return total
