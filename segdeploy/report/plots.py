"""Inline SVG plots: no script, no font, no colour of their own (CSS classes l0, d0, ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 14, 26
MOST_TICKS = 8  # Of a logarithmic axis: as many numbers stand beside each other.


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
    x_axis = Axis.around([x for x, _ in known], (LEFT, WIDTH - RIGHT))
    values = [y for _, y in known] + ([0.0] if from_zero else [])
    y_axis = Axis.around(values, (HEIGHT - BOTTOM, TOP))
    parts = [*grid(x_axis, y_axis)]
    parts += [_line(line, index, x_axis, y_axis) for index, line in enumerate(series)]
    legend = "".join(
        f'<span><i class="b{index}"></i>{escape(line.name)}</span>'
        for index, line in enumerate(series)
        if any(y is not None for _, y in line.points)
    )
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


@dataclass(frozen=True)
class Axis:
    """Values to pixels, with round ticks; `low`, `high` and `place` are logarithmic if `is_log`."""

    low: float
    high: float
    pixels: tuple[float, float]
    ticks: tuple[float, ...]
    is_log: bool = False

    @classmethod
    def logarithmic(cls, values: Sequence[float], pixels: tuple[float, float]) -> Axis:
        """Return an axis around positive values with ticks at 1, 2 and 5 times powers of ten."""
        powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        round_values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        low = max((t for t in round_values if t <= min(values)), default=round_values[0])
        high = min((t for t in round_values if t >= max(values)), default=round_values[-1])
        ticks = [t for t in round_values if low <= t <= high]
        while len(ticks) > MOST_TICKS:
            ticks = ticks[::2]
        return cls(math.log10(low), math.log10(max(high, 2 * low)), pixels, tuple(ticks), True)

    @classmethod
    def around(cls, values: Sequence[float], pixels: tuple[float, float]) -> Axis:
        """Return a linear axis that holds all the values."""
        low, high = min(values), max(values)
        if high - low < 1e-12 * max(1.0, abs(high)):
            pad = 0.5 * abs(high) or 0.5
            low, high = low - pad, high + pad
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(index * step for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], pixels, ticks)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        value = math.log10(value) if self.is_log else value
        start, end = self.pixels
        return start + (end - start) * (value - self.low) / (self.high - self.low)


def _round_step(rough: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    return factor * power


def grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    """Return the lines and numbers behind a plot."""
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>'
        )
    return parts + [
        f'<text x="{x_axis.place(tick):.1f}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{tick:.4g}</text>'
        for tick in x_axis.ticks
    ]


def _line(line: Series, index: int, x_axis: Axis, y_axis: Axis) -> str:
    """Return the line through all points that are known; a single one is a dot."""
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points if y is not None]
    if len(places) == 1:
        return f'<circle class="d{index}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    faint = " faint" * line.is_faint
    return f'<polyline class="l{index}{faint}" points="{points}"/>' if places else ""
