"""The compiled kernel (numba): one pass over the cells, about 0.2 us a boundary cell.

Rows of cells are independent, so threads take bands of them without the interpreter's lock. Inside
a boundary cell the innermost loop has a constant length of 8 pixels, which makes it one vector.
Nothing may be fused or reordered (no `fastmath`): pixels must round as in `reference`.

A sample is *clear* where it is finite and its winner leads by more than the margin; `winner` maps
hold the class of clear samples, and below zero why there is none.

What numba keeps on disk is renewed when this file changes and at no other time, so constants of
other files come as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from segdeploy.upsampling.reference import Axis, Floats, Ints

LANES = 8
IS_DISABLED = bool(getattr(numba.config, "DISABLE_JIT", False))
"""Whether the environment turns the compiler off: these functions then run in the interpreter."""
_NEARLY_TIED, _NOT_FINITE = -1, -2
_LOWEST = np.float32(-np.inf)
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True}
_NAMES: list[str] = []
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compile(function: _Function) -> _Function:
    """Compile at first use, kept on disk where a folder for it can be written."""
    _NAMES.append(function.__name__)
    try:
        compiled: _Function = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # No folder for the cache, e.g. a read-only installation without a home.
        compiled = numba.njit(**_OPTIONS)(function)
    return compiled


def drop_cache() -> None:
    """Compile in memory from now on: of a cache on disk that failed when it was used."""
    for name in _NAMES:
        globals()[name] = numba.njit(**_OPTIONS)(globals()[name].py_func)


class Margins(NamedTuple):
    """When a sample is clear: its lead exceeds `margin` times its extent, which is `least` or more.

    Both float32.
    """

    margin: np.float32
    least: np.float32


class AxisArrays(NamedTuple):
    """An `Axis` for the kernel; `rest` and `weight` have LANES more entries than there are pixels.

    One dtype and layout throughout: the kernel is compiled once.
    """

    low: Ints
    high: Ints
    rest: Floats
    weight: Floats
    starts: Ints


@lru_cache(maxsize=64)
def to_arrays(axis: Axis) -> AxisArrays:
    """Return an axis as the kernel takes it."""
    more = np.zeros(LANES, np.float32)
    rest, weight = (np.concatenate([share, more]) for share in (axis.rest, axis.weight))
    return AxisArrays(axis.low.copy(), axis.high.copy(), rest, weight, axis.starts.copy())


class _Cell(NamedTuple):
    """Pixels and samples of one cell."""

    y: Any
    y_end: Any
    x: Any
    x_end: Any


@_compile
def _find_winners(
    logits: Floats, row: int, is_binary: bool, margins: Margins, scratch: Any, winner: Ints
) -> None:
    """Fill `winner` for one row of samples; `scratch` are 4 arrays (w,). A vector over w each."""
    num_classes, _, width = logits.shape
    top, second, extent, doubt = scratch  # Slices of one array would not become vectors.
    for j in range(width):
        value = logits[0, row, j]
        top[j] = value
        second[j] = _LOWEST
        extent[j] = abs(value)
        doubt[j] = value - value  # 0, or NaN of what is not finite.
        winner[j] = 0
    for k in range(1, num_classes):
        for j in range(width):
            value = logits[k, row, j]
            best = top[j]
            doubt[j] += value - value
            extent[j] = max(extent[j], abs(value))
            second[j] = max(second[j], min(best, value))
            winner[j] = np.int32(k) if value > best else winner[j]
            top[j] = max(best, value)
    for j in range(width):
        gap = top[j] - second[j]
        if is_binary:
            gap = abs(top[j])
            winner[j] = 1 if top[j] > 0 else 0
        if not gap > margins.margin * max(extent[j], margins.least):
            winner[j] = _NEARLY_TIED
        if doubt[j] != 0:
            winner[j] = _NOT_FINITE


@_compile
def _gather(
    logits: Floats,
    margins: Margins,
    above: int,
    below: int,
    left: int,
    right: int,
    corners: Floats,
) -> np.float32:
    """Fill `corners` (4, K) and return what a class must reach at some corner to win a pixel."""
    lead, extent = _LOWEST, margins.least
    for k in range(logits.shape[0]):
        p, q = logits[k, above, left], logits[k, above, right]
        r, s = logits[k, below, left], logits[k, below, right]
        corners[0, k] = p
        corners[1, k] = q
        corners[2, k] = r
        corners[3, k] = s
        low, high = min(p, q, r, s), max(p, q, r, s)
        lead = max(lead, low)
        extent = max(extent, abs(low), abs(high))
    return np.float32(lead - margins.margin * extent)


@_compile
def _choose(corners: Floats, least: np.float32, chosen: Ints) -> int:
    """Fill `chosen` with the classes that can win, and return how many."""
    count = 0
    for k in range(corners.shape[1]):
        if max(corners[0, k], corners[1, k], corners[2, k], corners[3, k]) >= least:
            chosen[count] = k
            count += 1
    return count


@_compile
def _decide_each(
    corners: Floats, is_binary: bool, rows: AxisArrays, columns: AxisArrays, cell: _Cell, out: Any
) -> None:
    """Decide every pixel of a cell from all classes: of corners that are not finite."""
    for y in range(cell.y, cell.y_end):
        for x in range(cell.x, cell.x_end):
            found = 0
            best = _LOWEST
            for k in range(corners.shape[1]):
                upper = corners[0, k] * columns.rest[x] + corners[1, k] * columns.weight[x]
                lower = corners[2, k] * columns.rest[x] + corners[3, k] * columns.weight[x]
                value = upper * rows.rest[y] + lower * rows.weight[y]
                if is_binary:
                    found = 1 if value > 0 else 0
                elif np.isnan(value):  # The first NaN wins, as in np.argmax.
                    found = k
                    break
                elif value > best:
                    best = value
                    found = k
            out[y, x] = found


@_compile
def _decide_block(
    corners: Floats,
    chosen: Ints,
    is_binary: bool,
    rows: AxisArrays,
    columns: AxisArrays,
    cell: _Cell,
    ends: tuple[Floats, Floats, Floats, Floats],
    best: Floats,
    label: Ints,
) -> None:
    """Fill `label` for LANES columns from `cell.x` on; `ends` is scratch of LANES each."""
    upper, lower, _, _ = ends
    rest_x, weight_x, rest_y, weight_y = columns.rest, columns.weight, rows.rest, rows.weight
    y0, x0 = cell.y, cell.x
    num_rows = cell.y_end - y0
    for p in range(num_rows * LANES):
        best[p] = np.float32(0) if is_binary else _LOWEST
        label[p] = np.int32(0) if is_binary else chosen[0]
    for k in chosen:
        p0, p1, p2, p3 = corners[0, k], corners[1, k], corners[2, k], corners[3, k]
        for t in range(LANES):
            rest, weight = rest_x[x0 + t], weight_x[x0 + t]
            upper[t] = p0 * rest + p1 * weight
            lower[t] = p2 * rest + p3 * weight
        name = np.int32(1 if is_binary else k)  # As wide as a float32: both fill the same vector.
        for y in range(num_rows):
            rest, weight = rest_y[y0 + y], weight_y[y0 + y]
            for t in range(LANES):
                value = upper[t] * rest + lower[t] * weight
                p = y * LANES + t
                is_better = value > best[p]
                label[p] = name if is_better else label[p]
                best[p] = value if is_better else best[p]


@_compile
def _decide_pair(
    corners: Floats,
    first: int,
    second: int,
    rows: AxisArrays,
    columns: AxisArrays,
    y: int,
    y_end: int,
    x: int,
    ends: tuple[Floats, Floats, Floats, Floats],
    out: Any,
) -> None:
    """Label LANES columns from `x` on, where one of two classes wins: most boundaries are such.

    `ends` is scratch of LANES each. The second class wins where it is greater, as in a scan.
    """
    upper, lower, upper_2, lower_2 = ends
    rest_x, weight_x, rest_y, weight_y = columns.rest, columns.weight, rows.rest, rows.weight
    for t in range(LANES):
        rest, weight = rest_x[x + t], weight_x[x + t]
        upper[t] = corners[0, first] * rest + corners[1, first] * weight
        lower[t] = corners[2, first] * rest + corners[3, first] * weight
        upper_2[t] = corners[0, second] * rest + corners[1, second] * weight
        lower_2[t] = corners[2, second] * rest + corners[3, second] * weight
    name, name_2 = out.dtype.type(first), out.dtype.type(second)
    for row in range(y, y_end):
        rest, weight = rest_y[row], weight_y[row]
        for t in range(LANES):
            value = upper[t] * rest + lower[t] * weight
            value_2 = upper_2[t] * rest + lower_2[t] * weight
            out[row, x + t] = name_2 if value_2 > value else name


@_compile
def _fill_clear(
    above: Ints, below: Ints, columns: AxisArrays, y: int, y_end: int, boundary: Ints, out: Any
) -> int:
    """Label the cells of a row whose corners agree; list the others, and return how many."""
    count = 0
    for c in range(columns.starts.size - 1):
        start, end = columns.starts[c], columns.starts[c + 1]
        left, right = columns.low[start], columns.high[start]
        found = above[left]
        if found >= 0 and found == above[right] and found == below[left] and found == below[right]:
            for x in range(start, end):
                out[y, x] = found
        else:
            boundary[count] = c
            count += 1
    for row in range(y + 1, y_end):
        out[row] = out[y]
    return count


@_compile
def label_band(
    logits: Floats,
    is_binary: bool,
    margins: Margins,
    rows: AxisArrays,
    columns: AxisArrays,
    first: int,
    last: int,
    out: NDArray[np.unsignedinteger[Any]],
) -> int:
    """Label the rows of cells `first` .. `last` of one image; return how many cells were mixed.

    Args:
        logits: (K, h, w).
        is_binary: K is 1 and its sign decides.
        margins: What makes a sample clear.
        rows: The axis of H.
        columns: The axis of W.
        first: Index into `rows.starts`.
        last: Likewise; not included.
        out: (H, W), filled.
    """
    num_classes, _, width = logits.shape
    scratch = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    above, below = np.empty(width, np.int32), np.empty(width, np.int32)
    boundary = np.empty(columns.starts.size, np.int32)
    corners = np.empty((4, num_classes), np.float32)
    chosen = np.empty(num_classes, np.int32)
    ends = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    tallest = 0
    for g in range(first, last):
        tallest = max(tallest, rows.starts[g + 1] - rows.starts[g])
    best, label = np.empty(tallest * LANES, np.float32), np.empty(tallest * LANES, np.int32)
    known, num_mixed = -1, 0
    for g in range(first, last):
        y, y_end = rows.starts[g], rows.starts[g + 1]
        i, i_next = rows.low[y], rows.high[y]
        if known == i:
            above, below = below, above
        else:
            _find_winners(logits, i, is_binary, margins, scratch, above)
        _find_winners(logits, i_next, is_binary, margins, scratch, below)
        known = i_next
        count = _fill_clear(above, below, columns, y, y_end, boundary, out)
        num_mixed += count
        for c in boundary[:count]:
            x, x_end = columns.starts[c], columns.starts[c + 1]
            j, j_next = columns.low[x], columns.high[x]
            least = _gather(logits, margins, i, i_next, j, j_next, corners)
            worst = min(above[j], above[j_next], below[j], below[j_next])
            if worst == _NOT_FINITE:
                _decide_each(corners, is_binary, rows, columns, _Cell(y, y_end, x, x_end), out)
                continue
            num_chosen = _choose(corners, least, chosen)
            if num_chosen == 2 and x_end - x == LANES and not is_binary:
                _decide_pair(corners, chosen[0], chosen[1], rows, columns, y, y_end, x, ends, out)
                continue
            for left in range(x, x_end, LANES):
                cell = _Cell(y, y_end, left, min(left + LANES, x_end))
                _decide_block(
                    corners, chosen[:num_chosen], is_binary, rows, columns, cell, ends, best, label
                )
                for row in range(y_end - y):
                    for t in range(cell.x_end - left):
                        out[y + row, left + t] = label[row * LANES + t]
    return num_mixed
