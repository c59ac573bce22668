"""The one way from low-resolution logits to labels: compiled where numba is installed, else NumPy.

Both give the same labels on every pixel. Threads obey `frameworks.threads`; a small image is not
worth handing over to another thread. Without a number they are as many as the cores that this
process may use when it first asks, a container's quota included.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.contract import LEAST_EXTENT, MARGIN
from segdeploy.core.task import Labels, Task, label_dtype
from segdeploy.frameworks.threads import num_threads, usable_cores
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
        threads: Default: what the environment says, else all cores that this process may use.
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
    """Return whether the compiled kernel can be used: numba is there, loads and compiles."""
    try:
        compiled = importlib.import_module("segdeploy.upsampling.compiled")
    except ImportError:  # numba also refuses NumPy versions that it does not know.
        return False
    return not compiled.IS_DISABLED


def prepare_kernel(num_labels: int) -> None:
    """Compile what `upsample_labels` needs, or load it from disk: not in the first call."""
    if has_compiled():
        _compile_for(label_dtype(num_labels).str)


def compiled_fill(threads: int | None, pixels_of_a_thread: int = _PIXELS_OF_A_THREAD) -> Fill:
    """Return the compiled form on that many threads; numba must be there."""
    count = threads or num_threads() or _num_cores()

    def fill(logits: Floats, task: Task, rows: Axis, columns: Axis, out: Labels) -> int:
        _compile_for(out.dtype.str)
        num_rows = len(rows.starts) - 1
        num_bands = max(1, min(count, num_rows, out.size // pixels_of_a_thread))
        ends = [num_rows * band // num_bands for band in range(num_bands + 1)]

        def band(index: int) -> int:
            return _label_band(logits, task, rows, columns, out, ends[index], ends[index + 1])

        others = [_pool(os.getpid(), count).submit(band, i) for i in range(1, num_bands)]
        return band(0) + sum(other.result() for other in others)

    return fill


def _label_band(
    logits: Floats, task: Task, rows: Axis, columns: Axis, out: Labels, first: int, last: int
) -> int:
    """Label some rows of cells of one image; return how many cells were mixed."""
    from segdeploy.upsampling.compiled import Margins, label_band, to_arrays

    margins = Margins(np.float32(MARGIN * np.finfo(np.float32).eps), np.float32(LEAST_EXTENT))
    frozen = logits.view()
    frozen.flags.writeable = False  # Whatever it was: the kernel is compiled for one of both.
    where = to_arrays(rows), to_arrays(columns)
    found: int = label_band(frozen, task is Task.BINARY, margins, *where, first, last, out)
    return found


@lru_cache
def _compile_for(label_type: str) -> None:
    """Compile the kernel, or load it; a folder of its cache that fails (full, damaged) is left."""
    axis = find_axis(2, 4, align_corners=False)
    logits, out = np.zeros((1, 2, 2), np.float32), np.empty((4, 4), label_type)
    try:
        _label_band(logits, Task.BINARY, axis, axis, out, 0, 1)
    except (OSError, EOFError, pickle.UnpicklingError):
        from segdeploy.upsampling.compiled import drop_cache

        drop_cache()
        _label_band(logits, Task.BINARY, axis, axis, out, 0, 1)


@lru_cache(maxsize=1)
def _num_cores() -> int:
    """Ask once: to read the quota takes a tenth of the time of a small image."""
    return usable_cores()


@lru_cache(maxsize=1)
def _pool(_process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="upsampling")
