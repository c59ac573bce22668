"""A scatter plot as inline SVG: dots with names and hints, and the front through the best of them.

An axis turns logarithmic where its values span more than a decade: between an int8 graph at 2 ms
and eager PyTorch at 200 ms a linear one shows two clumps. The front is a staircase: right of and
below a step nothing is better than the step's corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from segdeploy.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, grid

_RADIUS = 11.0
_LINE, _LETTER = 11.0, 6.2  # Height and usual width of a letter of the plot's text.
_MOST_STEPS = 14  # Of half a line: farther away nobody sees whose name it is.
_DECADE = 10.0


@dataclass(frozen=True)
class Dot:
    """One point; `weight` gives its area, `hint` is shown on hovering (default: the name).

    A faint one has no name beside it; `is_contender` says that it may be on the front.
    """

    name: str
    x: float
    y: float
    weight: float
    color: int = 0
    is_faint: bool = False
    hint: str = ""
    is_contender: bool = False


def scatter_plot(title: str, axes: str, dots: Sequence[Dot], *, is_high_better: bool = True) -> str:
    """Return a figure of dots with their names; `axes` says what x, y and area are."""
    if not dots:
        return ""
    x_axis = _x_axis([dot.x for dot in dots])
    y_axis = Axis.around([dot.y for dot in dots], (HEIGHT - BOTTOM, TOP))
    largest = max(dot.weight for dot in dots) or 1.0
    parts = [*grid(x_axis, y_axis), _front_line(dots, is_high_better, x_axis, y_axis)]
    places = {id(dot): (x_axis.place(dot.x), y_axis.place(dot.y)) for dot in dots}
    sizes = {id(dot): max(3.0, _RADIUS * math.sqrt(dot.weight / largest)) for dot in dots}
    taken = [
        (x - r, y - r, x + r, y + r)
        for (x, y), r in zip(places.values(), sizes.values(), strict=True)
    ]
    for dot in sorted(dots, key=lambda dot: (not dot.is_faint, -dot.weight)):
        (x, y), radius = places[id(dot)], sizes[id(dot)]
        faint = " ghost" * dot.is_faint
        parts.append(
            f'<circle class="dot d{dot.color}{faint}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(dot.hint or dot.name)}</title></circle>"
        )
        if not dot.is_faint:
            parts.append(_name(dot.name, x, y, radius, taken))
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b><span>{escape(axes)}</span>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def find_front(dots: Sequence[Dot], *, is_high_better: bool = True) -> list[Dot]:
    """Return the dots that no other beats in both x (less is better) and y, from left to right."""
    sign = -1.0 if is_high_better else 1.0
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, sign * dot.y)):
        if not found or sign * dot.y < sign * found[-1].y:
            found.append(dot)
    return found


def _front_line(dots: Sequence[Dot], is_high_better: bool, x_axis: Axis, y_axis: Axis) -> str:
    front = find_front([dot for dot in dots if dot.is_contender], is_high_better=is_high_better)
    if len(front) < 2:
        return ""
    places = [(x_axis.place(dot.x), y_axis.place(dot.y)) for dot in front]
    corners = [places[0]]
    for before, after in pairwise(places):
        corners += [(after[0], before[1]), after]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polyline class="front" points="{points}"/>'


def _x_axis(values: Sequence[float]) -> Axis:
    pixels = (LEFT, WIDTH - RIGHT)
    if min(values) > 0 and max(values) > _DECADE * min(values):
        return Axis.logarithmic(values, pixels)
    return Axis.around([0.0, *values], pixels)


_Box = tuple[float, float, float, float]  # Left, top, right, bottom.


def _name(name: str, x: float, y: float, radius: float, taken: list[_Box]) -> str:
    """Return a name near its dot that covers no other name and no dot, with a line if far away."""
    places = [
        (x + side * (radius + 4), y + sign * step * _LINE / 2)
        for step in range(_MOST_STEPS)
        for sign in (1, -1)
        for side in (1, -1)
    ]
    free = (place for place in places if _is_free(_box(name, *place, x), taken))
    at, line = next(free, (x + radius + 4, y))
    taken.append(_box(name, at, line, x))
    anchor = "start" if at > x else "end"
    leader = ""
    if abs(line - y) > _LINE:
        leader = f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{at:.1f}" y2="{line:.1f}"/>'
    return (
        f'{leader}<text x="{at:.1f}" y="{line + 3.5:.1f}" text-anchor="{anchor}">'
        f"{escape(name)}</text>"
    )


def _box(name: str, at: float, line: float, x: float) -> _Box:
    """Return where a name stands that begins, or left of its dot ends, at a place."""
    width = _LETTER * len(name)
    left = at if at > x else at - width
    return left, line - _LINE / 2, left + width, line + _LINE / 2


def _is_free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    is_inside = left >= LEFT and right <= WIDTH and top >= 0 and bottom <= HEIGHT - BOTTOM + _LINE
    return is_inside and not any(
        left < end and start < right and top < low and high < bottom
        for start, high, end, low in taken
    )
