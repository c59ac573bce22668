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
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.contract import LEAST_EXTENT, MARGIN
from segdeploy.core.task import Labels, Task, label_dtype
from segdeploy.frameworks.threads import num_threads, usable_cores
from segdeploy.upsampling.labels import numpy_form
from segdeploy.upsampling.reference import Axis, Floats, find_axis

_PIXELS_OF_A_THREAD = 2**18  # About 0.2 ms of work: less does not pay for waking a thread.
Fill = Callable[[Floats, Labels], int]
"""Labels one image, logits (K, h, w) into (H, W), and returns how many cells were mixed."""
Form = Callable[[Task, Axis, Axis, np.dtype[Any]], Fill]
"""Gets ready for a task, a grid (the axes of H and W) and a type of labels, once for all images."""
Labeller = Callable[[NDArray[np.floating[Any]]], Labels]


def upsample_labels(
    logits: NDArray[np.floating[Any]],
    size: tuple[int, int],
    *,
    align_corners: bool,
    task: Task,
    num_labels: int,
    threads: int | None = None,
    form: Form | None = None,
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
        form: The form that labels an image; default: the fastest there is.
    """
    low_size = (logits.shape[2], logits.shape[3])
    form = form or fastest_form(threads)
    return make_labeller(low_size, size, align_corners, task, num_labels, form)(logits)


def make_labeller(
    low_size: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    task: Task,
    num_labels: int,
    form: Form,
) -> Labeller:
    """Return what makes label maps (N, H, W) of logits (N, K, h, w), `low_size` being (h, w).

    All that is the same for every image is done here: what Python does between two runs of a
    network, whose data fill the caches, takes several times what it takes in a loop of its own.
    """
    if task is Task.MULTILABEL:
        raise ValueError("a multilabel prediction is not one label map")
    rows, columns = (
        find_axis(samples, pixels, align_corners=align_corners)
        for samples, pixels in zip(low_size, size, strict=True)
    )
    kind = label_dtype(num_labels)
    fill = form(task, rows, columns, kind)

    def label(logits: NDArray[np.floating[Any]]) -> Labels:
        low = np.ascontiguousarray(logits, dtype=np.float32)
        out: Labels = np.empty((len(low), *size), kind)
        for image, labels in zip(low, out, strict=True):
            fill(image, labels)
        return out

    return label


def fastest_form(threads: int | None = None) -> Form:
    """Return the compiled form, or NumPy's where it cannot be used."""
    return compiled_form(threads) if has_compiled() else numpy_form


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


def compiled_form(threads: int | None, pixels_of_a_thread: int = _PIXELS_OF_A_THREAD) -> Form:
    """Return the compiled form on that many threads; numba must be there."""
    count = threads or num_threads() or _num_cores()

    def form(task: Task, rows: Axis, columns: Axis, kind: np.dtype[Any]) -> Fill:
        _compile_for(kind.str)
        num_rows = len(rows.starts) - 1
        num_pixels = rows.low.size * columns.low.size
        num_bands = max(1, min(count, num_rows, num_pixels // pixels_of_a_thread))
        ends = [num_rows * band // num_bands for band in range(num_bands + 1)]
        first, *others = (_band(task, rows, columns, *part) for part in pairwise(ends))
        if not others:
            return first

        def fill(logits: Floats, out: Labels) -> int:
            submit = _pool(os.getpid(), count).submit
            waiting = [submit(band, logits, out) for band in others]
            return first(logits, out) + sum(each.result() for each in waiting)

        return fill

    return form


def _band(task: Task, rows: Axis, columns: Axis, first: int, last: int) -> Fill:
    """Return what labels rows of cells `first` .. `last`."""
    from segdeploy.upsampling.compiled import Margins, label_band, to_arrays

    margins = Margins(np.float32(MARGIN * np.finfo(np.float32).eps), np.float32(LEAST_EXTENT))
    fixed = (task is Task.BINARY, margins, to_arrays(rows), to_arrays(columns), first, last)

    def fill(logits: Floats, out: Labels) -> int:
        frozen = logits.view()
        frozen.flags.writeable = False  # Whatever it was: the kernel is compiled for one of both.
        found: int = label_band(frozen, *fixed, out)
        return found

    return fill


@lru_cache
def _compile_for(label_type: str) -> None:
    """Compile the kernel, or load it; a folder of its cache that fails (full, damaged) is left."""
    axis = find_axis(2, 4, align_corners=False)
    logits, out = np.zeros((1, 2, 2), np.float32), np.empty((4, 4), label_type)
    try:
        _band(Task.BINARY, axis, axis, 0, 1)(logits, out)
    except (OSError, EOFError, pickle.UnpicklingError):
        from segdeploy.upsampling.compiled import drop_cache

        drop_cache()
        _band(Task.BINARY, axis, axis, 0, 1)(logits, out)


@lru_cache(maxsize=1)
def _num_cores() -> int:
    """Ask once: to read the quota takes a tenth of the time of a small image."""
    return usable_cores()


@lru_cache(maxsize=1)
def _pool(_process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="upsampling")
