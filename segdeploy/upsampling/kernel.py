"""The one way from low-resolution logits to labels: compiled where numba is installed, else NumPy.

Both give the same labels on every pixel. Threads obey `frameworks.threads`; a small image is not
worth handing over to another thread.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.task import Labels, Task, label_dtype
from segdeploy.frameworks.threads import num_threads
from segdeploy.upsampling.labels import fill_labels
from segdeploy.upsampling.reference import Axis, Floats, find_axis

_PIXELS_OF_A_THREAD = 2**18  # About 0.2 ms of work: less does not pay for waking a thread.
Fill = Callable[[Floats, Task, Axis, Axis, Labels], int]


def upsample_labels(
    logits: NDArray[np.floating[Any]],
    size: tuple[int, int],
    *,
    align_corners: bool,
    task: Task,
    num_labels: int,
    threads: int | None = None,
    fill: Fill | None = None,
) -> Labels:
    """Return the label map (N, H, W) of logits (N, K, h, w) at `size` (H, W).

    Equal on every pixel to `reference_labels`: full interpolation, then the decision.

    Args:
        logits: Float32; other types are converted.
        size: Of the label map, larger or smaller.
        align_corners: Of the interpolation.
        task: Multiclass or binary.
        num_labels: Number of class names; sets the label type.
        threads: Default: what the environment says, else all cores.
        fill: The form that labels one image; default: the fastest there is.
    """
    if task is Task.MULTILABEL:
        raise ValueError("a multilabel prediction is not one label map")
    low = np.ascontiguousarray(logits, dtype=np.float32)
    rows = find_axis(low.shape[2], size[0], align_corners=align_corners)
    columns = find_axis(low.shape[3], size[1], align_corners=align_corners)
    out: Labels = np.empty((len(low), *size), label_dtype(num_labels))
    if fill is None:
        fill = compiled_fill(threads) if has_compiled() else fill_labels
    for image, labels in zip(low, out, strict=True):
        fill(image, task, rows, columns, labels)
    return out


@lru_cache(maxsize=1)
def has_compiled() -> bool:
    """Return whether the compiled kernel can be used: numba is there, and loads."""
    try:
        importlib.import_module("segdeploy.upsampling.compiled")
    except ImportError:  # numba also refuses NumPy versions that it does not know.
        return False
    return True


def prepare_kernel(task: Task, num_labels: int) -> None:
    """Compile what `upsample_labels` needs, or load it from disk: not in the first call."""
    if has_compiled():
        channels = 1 if task is Task.BINARY else num_labels
        logits = np.zeros((1, channels, 2, 2), np.float32)
        upsample_labels(logits, (4, 4), align_corners=False, task=task, num_labels=num_labels)


def compiled_fill(threads: int | None, pixels_of_a_thread: int = _PIXELS_OF_A_THREAD) -> Fill:
    """Return the compiled form on that many threads; numba must be there."""
    count = threads or num_threads() or os.cpu_count() or 1

    def fill(logits: Floats, task: Task, rows: Axis, columns: Axis, out: Labels) -> int:
        from segdeploy.upsampling.compiled import label_band, to_arrays

        where = to_arrays(rows), to_arrays(columns)
        logits = logits.view()
        logits.flags.writeable = False  # Whatever it was: the kernel is compiled for one of both.
        num_rows = len(rows.starts) - 1
        num_bands = max(1, min(count, num_rows, out.size // pixels_of_a_thread))
        ends = [num_rows * band // num_bands for band in range(num_bands + 1)]

        def band(index: int) -> int:
            first, last = ends[index], ends[index + 1]
            found: int = label_band(logits, task is Task.BINARY, *where, first, last, out)
            return found

        others = [_pool(os.getpid(), count).submit(band, i) for i in range(1, num_bands)]
        return band(0) + sum(other.result() for other in others)

    return fill


@lru_cache(maxsize=1)
def _pool(_process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="upsampling")
