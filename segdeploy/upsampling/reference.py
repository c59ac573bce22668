"""The definition of right: full bilinear interpolation of low-resolution logits, then the decision.

Everything is float32, in the order of PyTorch's kernel: coordinates, then along x, then along y,
each as `low * (1 - t) + high * t` with no fused multiply-add. Runtimes round these steps
differently from one another, so "equal" needs one of them to be named; it is this one. The fast
forms (`labels`, `compiled`) make the same operations wherever they compute anything.

Letters: N batch, K classes, h and w low resolution, H and W full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.task import Labels, Task, predict_labels

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)  # One object for each question, `find_axis` sees to that.
class Axis:
    """Where the pixels of one axis lie between samples; all arrays have one entry a pixel.

    `low` and `high` are the two samples (the same one beyond the last), `weight` is the share of
    `high`, in [0, 1], and `rest` that of `low`. `starts` holds the first pixel of each cell, that
    is of each run of pixels between the same two samples, and the number of pixels at its end.
    """

    low: Ints
    high: Ints
    weight: Floats
    rest: Floats
    starts: Ints


@lru_cache(maxsize=64)
def find_axis(num_samples: int, num_pixels: int, *, align_corners: bool) -> Axis:
    """Return where each of `num_pixels` lies between `num_samples`, as PyTorch computes it."""
    one, half = np.float32(1), np.float32(0.5)
    pixels = np.arange(num_pixels, dtype=np.float32)
    if align_corners:
        step = np.float32(num_samples - 1) / np.float32(max(num_pixels - 1, 1))
        place = pixels * (step if num_pixels > 1 else np.float32(0))
    else:
        step = np.float32(num_samples) / np.float32(num_pixels)
        place = np.maximum(step * (pixels + half) - half, np.float32(0))
    low = np.minimum(place.astype(np.int32), num_samples - 1)
    weight = np.clip(place - low.astype(np.float32), np.float32(0), one)
    changes = np.flatnonzero(np.diff(low)) + 1
    axis = Axis(
        low=low,
        high=np.minimum(low + 1, num_samples - 1).astype(np.int32),
        weight=weight,
        rest=one - weight,
        starts=np.concatenate([[0], changes, [num_pixels]]).astype(np.int32),
    )
    for array in vars(axis).values():
        array.flags.writeable = False  # It is shared by all who ask for it.
    return axis


def upsample_logits(
    logits: NDArray[np.floating[Any]], size: tuple[int, int], *, align_corners: bool
) -> Floats:
    """Return logits (N, K, h, w) at `size` (H, W): every pixel of every class, bilinear."""
    low_logits = logits.astype(np.float32, copy=False)
    rows = find_axis(logits.shape[2], size[0], align_corners=align_corners)
    columns = find_axis(logits.shape[3], size[1], align_corners=align_corners)
    with np.errstate(invalid="ignore", over="ignore"):  # 0 x infinity is NaN, and stays so.
        wide = low_logits[..., columns.low] * columns.rest
        wide += low_logits[..., columns.high] * columns.weight
        full: Floats = wide[..., rows.low, :] * rows.rest[:, None]
        full += wide[..., rows.high, :] * rows.weight[:, None]
    return full


def reference_labels(
    logits: NDArray[np.floating[Any]], size: tuple[int, int], *, align_corners: bool, task: Task
) -> Labels:
    """Return the label map (N, H, W) that every faster form has to equal on every pixel."""
    return predict_labels(upsample_logits(logits, size, align_corners=align_corners), task)
