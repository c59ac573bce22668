"""The picture of a sustained run, as one SVG file: p50 and p90 of each second over the minutes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segdeploy.bench.sustained import Row

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 34
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}polyline{fill:none;stroke-width:1.5}"
    ".p50{stroke:#1f6feb}.p90{stroke:#d4731c;stroke-opacity:.6}.grid{stroke:#ddd}"
)
_TICKS = 4


def sustained_svg(title: str, rows: Sequence[Row]) -> str:
    """Return the picture of at least one row; the axis of milliseconds begins at 0."""
    longest = max(start for start, _, _, _ in rows) or 1.0
    highest = max(p90 for _, _, p90, _ in rows) * 1.05 or 1.0

    def place(seconds: float, ms: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / longest
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * ms / highest
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline class="{name}" points="{" ".join(place(row[0], row[at]) for row in rows)}"/>'
        for name, at in (("p90", 2), ("p50", 1))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}"><style>{_STYLE}</style>'
        f'<text x="{_LEFT}" y="18">{escape(title)}: p50 (blue) and p90 (orange) of each second, '
        f"ms</text>{_grid(longest / 60, highest)}{lines}</svg>\n"
    )


def _grid(minutes: float, highest: float) -> str:
    parts = []
    for tick in range(_TICKS + 1):
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * tick / _TICKS
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * tick / _TICKS
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{highest * tick / _TICKS:.3g}</text>"
            f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">'
            f"{minutes * tick / _TICKS:.2g}{' min' * (tick == _TICKS)}</text>"
        )
    return "".join(parts)
