"""Inline SVG plots: no script, no font, no colour of their own (CSS classes l0, d0, ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 14, 26


@dataclass(frozen=True)
class Series:
    """One line: its name, its points (it passes over a missing y), whether it is background."""

    name: str
    points: Sequence[tuple[float, float | None]]
    is_faint: bool = False


def line_plot(title: str, series: Sequence[Series], *, from_zero: bool = False) -> str:
    """Return a figure with one line per series, or nothing if there is no point at all."""
    known = [(x, y) for line in series for x, y in line.points if y is not None]
    if not known:
        return ""
    x_axis = _Axis.around([x for x, _ in known], (_LEFT, _WIDTH - _RIGHT))
    values = [y for _, y in known] + ([0.0] if from_zero else [])
    y_axis = _Axis.around(values, (_HEIGHT - _BOTTOM, _TOP))
    parts = [*_grid(x_axis, y_axis)]
    parts += [_line(line, index, x_axis, y_axis) for index, line in enumerate(series)]
    legend = "".join(
        f'<span><i class="b{index}"></i>{escape(line.name)}</span>'
        for index, line in enumerate(series)
        if any(y is not None for _, y in line.points)
    )
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot; `weight` gives its area, a faint one has its name as a hint."""

    name: str
    x: float
    y: float
    weight: float
    color: int = 0
    is_faint: bool = False


def scatter_plot(title: str, axes: str, dots: Sequence[Dot]) -> str:
    """Return a figure of dots with their names; `axes` says what x, y and area are."""
    if not dots:
        return ""
    x_axis = _Axis.around([0.0, *(dot.x for dot in dots)], (_LEFT, _WIDTH - _RIGHT))
    y_axis = _Axis.around([dot.y for dot in dots], (_HEIGHT - _BOTTOM, _TOP))
    largest = max(dot.weight for dot in dots) or 1.0
    parts = _grid(x_axis, y_axis)
    placed: list[tuple[float, float, float]] = []
    for dot in sorted(dots, key=lambda dot: (not dot.is_faint, -dot.weight)):
        x, y = x_axis.place(dot.x), y_axis.place(dot.y)
        radius = max(3.0, _RADIUS * math.sqrt(dot.weight / largest))
        faint = " ghost" * dot.is_faint
        parts.append(
            f'<circle class="dot d{dot.color}{faint}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(dot.name)}</title></circle>"
        )
        if not dot.is_faint:
            parts.append(_name(dot.name, x, y, radius, placed))
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b><span>{escape(axes)}</span>'
        f'</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


_RADIUS = 11.0
_LINE, _LETTER = 11.0, 5.6  # Height and usual width of a letter of the plot's text.


def _name(
    name: str, x: float, y: float, radius: float, placed: list[tuple[float, float, float]]
) -> str:
    """Return a name beside its dot, moved up or down until it covers no other."""
    width = _LETTER * len(name)
    is_left = x + radius + width > _WIDTH
    start = x - radius - 4 - width if is_left else x + radius + 4
    steps = (sign * step for step in range(12) for sign in (1, -1))
    free = (y + _LINE * step / 2 for step in steps)
    line = next((at for at in free if _is_free(start, width, at, placed)), y)
    placed.append((start, width, line))
    anchor, at = ("end", start + width) if is_left else ("start", start)
    return f'<text x="{at:.1f}" y="{line + 3.5:.1f}" text-anchor="{anchor}">{escape(name)}</text>'


def _is_free(
    start: float, width: float, line: float, placed: Sequence[tuple[float, float, float]]
) -> bool:
    return _TOP <= line <= _HEIGHT - _BOTTOM and not any(
        abs(line - other) < _LINE and start < left + wide and left < start + width
        for left, wide, other in placed
    )


@dataclass(frozen=True)
class _Axis:
    """Values to pixels, with round ticks."""

    low: float
    high: float
    pixels: tuple[float, float]
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float], pixels: tuple[float, float]) -> _Axis:
        low, high = min(values), max(values)
        if high - low < 1e-12 * max(1.0, abs(high)):
            pad = 0.5 * abs(high) or 0.5
            low, high = low - pad, high + pad
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(index * step for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], pixels, ticks)

    def place(self, value: float) -> float:
        start, end = self.pixels
        return start + (end - start) * (value - self.low) / (self.high - self.low)


def _round_step(rough: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    return factor * power


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>'
        )
    return parts + [
        f'<text x="{x_axis.place(tick):.1f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{tick:.4g}</text>'
        for tick in x_axis.ticks
    ]


def _line(line: Series, index: int, x_axis: _Axis, y_axis: _Axis) -> str:
    """Return the line through all points that are known; a single one is a dot."""
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points if y is not None]
    if len(places) == 1:
        return f'<circle class="d{index}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    faint = " faint" * line.is_faint
    return f'<polyline class="l{index}{faint}" points="{points}"/>' if places else ""
