"""A flame picture as one SVG file: no script, no font, opens in any browser.

The root is the whole call; below it the parts by name, as wide as their time, the widest first.
Hovering shows name, milliseconds and share. What no layer explains is grey.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

_WIDTH, _ROW, _TOP, _LETTER = 1200, 20, 28, 6.6
_LEAST_PX = 0.3
_STYLE = (
    "text{font:11px ui-monospace,monospace;fill:#111}"
    "rect{stroke:#fff;stroke-width:.5}g:hover>rect{stroke:#111}"
)


@dataclass
class _Frame:
    name: str
    ms: float = 0.0
    parts: dict[str, _Frame] = field(default_factory=dict)


def flame_svg(title: str, total_ms: float, layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the picture; each layer has `path` (names from the root on) and `ms`."""
    root = _Frame(title)
    for layer in layers:
        root.ms += layer["ms"]
        frame = root
        for name in layer["path"]:
            frame = frame.parts.setdefault(name, _Frame(name))
            frame.ms += layer["ms"]
    rest = total_ms - root.ms
    if rest > 0:
        root.parts["other"] = _Frame("other", rest)
        root.ms = total_ms
    boxes = _boxes(root, 0.0, 0, root.ms)
    height = _TOP + _ROW * (1 + max((depth for depth, _ in boxes), default=0))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}"><style>{_STYLE}</style>'
        f'<text x="4" y="18">{escape(title)}: {total_ms:.2f} ms a call</text>'
        f"{''.join(box for _, box in boxes)}</svg>\n"
    )


def _boxes(frame: _Frame, start_ms: float, depth: int, total_ms: float) -> list[tuple[int, str]]:
    """Return the frame and its parts with their depths, what is too thin to be seen left out."""
    scale = _WIDTH / total_ms if total_ms else 0.0
    width = frame.ms * scale
    if width < _LEAST_PX:
        return []
    boxes = [(depth, _box(frame, start_ms * scale, width, depth, total_ms))]
    for part in sorted(frame.parts.values(), key=lambda part: -part.ms):
        boxes += _boxes(part, start_ms, depth + 1, total_ms)
        start_ms += part.ms
    return boxes


def _box(frame: _Frame, x: float, width: float, depth: int, total_ms: float) -> str:
    y = _TOP + depth * _ROW
    shown = frame.name[: max(0, int((width - 6) / _LETTER))]
    label = f'<text x="{x + 3:.1f}" y="{y + 14}">{escape(shown)}</text>' if len(shown) > 2 else ""
    share = frame.ms / total_ms if total_ms else 0.0
    return (
        f"<g><title>{escape(frame.name)}: {frame.ms:.3f} ms, {share:.1%}</title>"
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" '
        f'fill="{_colour(frame.name)}"/>{label}</g>'
    )


def _colour(name: str) -> str:
    """Return a warm colour that is always the same for a name."""
    if name == "other":
        return "#ccc"
    number = zlib.crc32(name.encode())
    return f"hsl({number % 45 + 10} {60 + number // 45 % 25}% {62 + number // 1125 % 14}%)"
