"""The fast form in NumPy: clear cells get their corners' label, other pixels are decided.

A sample is clear where it is finite and its winner leads by more than the margin. Mixed cells are
decided from the classes that can win there, a few thousand pixels at a time, so that memory stays
far below one full-resolution map of logits. Serves where numba is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.contract import LEAST_EXTENT, MARGIN
from segdeploy.core.task import Labels, Task
from segdeploy.upsampling.reference import Axis, Floats

_BLOCK = 1 << 18  # Values of one step: the block and its products stay in the second-level cache.
_MARGIN = np.float32(MARGIN * np.finfo(np.float32).eps)
_LEAST = np.float32(LEAST_EXTENT)
Places = NDArray[np.intp]


def numpy_form(
    task: Task, rows: Axis, columns: Axis, _kind: object
) -> Callable[[Floats, Labels], int]:
    """Return what labels an image, for this task and grid."""
    return lambda logits, out: fill_labels(logits, task, rows, columns, out)


def fill_labels(logits: Floats, task: Task, rows: Axis, columns: Axis, out: Labels) -> int:
    """Label one image: logits (K, h, w) into `out` (H, W); return how many cells were mixed."""
    is_binary = task is Task.BINARY
    with np.errstate(invalid="ignore", over="ignore"):  # Of logits that are not finite.
        winner = _find_winners(logits, is_binary)
        cells = _Cells.of(rows, columns)
        corners = [winner[part] for part in cells.samples()]
        agreed = (corners[0] >= 0) & np.logical_and.reduce([corners[0] == c for c in corners[1:]])
        clear = np.where(agreed, corners[0], 0).astype(out.dtype)
        across = np.repeat(clear, np.diff(columns.starts), axis=1)
        np.copyto(out, np.repeat(across, np.diff(rows.starts), axis=0))
        mixed = np.argwhere(~agreed)
        for some in _in_blocks(mixed, len(logits)):
            _decide(logits, is_binary, cells, some, out)
    return len(mixed)


@dataclass(frozen=True)
class _Cells:
    """The grid of cells: for each row and column of it, the samples on both sides."""

    rows: Axis
    columns: Axis
    above: Places
    below: Places
    left: Places
    right: Places

    @classmethod
    def of(cls, rows: Axis, columns: Axis) -> _Cells:
        y, x = rows.starts[:-1], columns.starts[:-1]
        found = (rows.low[y], rows.high[y], columns.low[x], columns.high[x])
        above, below, left, right = (places.astype(np.intp) for places in found)
        return cls(rows, columns, above, below, left, right)

    def samples(self) -> Iterator[tuple[Places, Places]]:
        """Yield the index of each of the four corners of all cells."""
        for y in (self.above, self.below):
            for x in (self.left, self.right):
                yield np.ix_(y, x)  # type: ignore[misc]


def _find_winners(logits: Floats, is_binary: bool) -> NDArray[np.int32]:
    """Return the class of each clear sample (h, w), -1 where it is nearly tied, -2 not finite."""
    top = logits.max(axis=0)
    winner: NDArray[np.int32] = logits.argmax(axis=0).astype(np.int32)
    extent = np.maximum(np.maximum(top, -logits.min(axis=0)), _LEAST)
    if is_binary:
        gap, winner = np.abs(top), (top > 0).astype(np.int32)
    elif len(logits) == 1:
        gap = np.full_like(top, np.inf)
    else:
        pair = np.partition(logits, -2, axis=0)[-2:]
        gap = pair[1] - pair[0]
    winner[~(gap > _MARGIN * extent)] = -1
    winner[~np.isfinite(extent) | np.isnan(logits).any(axis=0)] = -2
    return winner


def _in_blocks(mixed: Places, num_classes: int) -> Iterator[Places]:
    step = max(1, _BLOCK // (4 * num_classes))
    for start in range(0, len(mixed), step):
        yield mixed[start : start + step]


def _decide(
    logits: Floats, is_binary: bool, cells: _Cells, some: Places, out: NDArray[Any]
) -> None:
    """Decide the pixels of some cells (B, 2), grouped by how many classes can win in them."""
    y, x = cells.above[some[:, 0]], cells.left[some[:, 1]]
    y_next, x_next = cells.below[some[:, 0]], cells.right[some[:, 1]]
    four = (logits[:, y, x], logits[:, y, x_next], logits[:, y_next, x], logits[:, y_next, x_next])
    corners = np.stack(four)  # (4, K, B)
    high, low = corners.max(axis=0), corners.min(axis=0)
    extent = np.maximum(np.maximum(high, -low).max(axis=0), _LEAST)
    least = low.max(axis=0) - _MARGIN * extent
    can_win = (high >= least) | ~np.isfinite(corners).all(axis=(0, 1))
    count = can_win.sum(axis=0)
    for number in np.unique(count):
        which = np.flatnonzero(count == number)
        classes = np.nonzero(can_win[:, which].T)[1].reshape(len(which), number)  # Ascending.
        picked = corners[:, classes, which[:, None]]  # (4, B, number)
        for part, pixels in _pixels(cells, some[which], int(number)):
            _decide_pixels(picked, classes, part, pixels, cells, is_binary, out)


def _pixels(cells: _Cells, some: Places, num_classes: int) -> Iterator[tuple[Places, Places]]:
    """Yield, a block at a time, (index of its cell, (y, x)) of every pixel of some cells (B, 2)."""
    first = [axis.starts[some[:, i]] for i, axis in enumerate((cells.rows, cells.columns))]
    last = [axis.starts[some[:, i] + 1] for i, axis in enumerate((cells.rows, cells.columns))]
    height, width = last[0] - first[0], last[1] - first[1]
    ends = np.cumsum(height.astype(np.intp) * width)
    step = max(1, _BLOCK // (8 * num_classes))
    for start in range(0, int(ends[-1]), step):
        number = np.arange(start, min(start + step, int(ends[-1])))
        cell = np.searchsorted(ends, number, side="right")
        inside = number - np.where(cell > 0, ends[cell - 1], 0)
        y = first[0][cell] + inside // width[cell]
        x = first[1][cell] + inside % width[cell]
        yield cell, np.stack([y, x])


def _decide_pixels(
    picked: Floats,
    classes: Places,
    cell: Places,
    pixels: Places,
    cells: _Cells,
    is_binary: bool,
    out: NDArray[Any],
) -> None:
    """Interpolate the classes that can win, as the reference does, and write the labels."""
    y, x = pixels
    rest_x, weight_x = cells.columns.rest[x, None], cells.columns.weight[x, None]
    rest_y, weight_y = cells.rows.rest[y, None], cells.rows.weight[y, None]
    values = picked[0, cell] * rest_x + picked[1, cell] * weight_x
    lower = picked[2, cell] * rest_x + picked[3, cell] * weight_x
    values *= rest_y
    values += lower * weight_y
    if is_binary:
        out[y, x] = values[:, 0] > 0
        return
    out[y, x] = classes[cell, values.argmax(axis=1)]
