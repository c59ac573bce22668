"""Sliding windows: an image of any size through a model that sees one window at a time.

Windows lie on a regular grid; the last of a row or column ends at the border. Where they overlap,
logits are averaged. Memory is that of one float32 map (K, H, W) and one window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ConfigError

RunImage = Callable[[NDArray[np.uint8]], NDArray[np.floating]]
"""From one uint8 RGB image (H, W, 3) to its logits (K, H, W)."""

_LEAST_SIDE = 32  # As of a model's input.
_MOST_OVERLAP = 0.95


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of `size` (H, W) in pixels; neighbours share the part `overlap` of a side."""

    size: tuple[int, int]
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if min(self.size) < _LEAST_SIDE:
            raise ConfigError(
                f"Sliding window: the sides must be at least {_LEAST_SIDE}, found {self.size}."
            )
        if not 0 <= self.overlap <= _MOST_OVERLAP:
            raise ConfigError(
                f"Sliding window: the overlap must be in 0..{_MOST_OVERLAP}, found {self.overlap}.",
                hint="It is a part of the window's side, e.g. 0.5.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what results say of it."""
        return {"size": list(self.size), "overlap": self.overlap}

    def corners(self, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield (top, left) of each window on an image (H, W) that is no smaller than one."""
        rows, columns = (
            _starts(length, side, self.overlap)
            for length, side in zip(size, self.size, strict=True)
        )
        yield from ((top, left) for top in rows for left in columns)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    stride = max(1, round(side * (1 - overlap)))
    count = math.ceil((length - side) / stride) + 1
    return [min(i * stride, length - side) for i in range(count)]


def run_windows(
    image: NDArray[np.uint8], window: SlidingWindow, run: RunImage, colour: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return logits (K, H, W), averaged over the windows that see a pixel.

    Args:
        image: RGB (H, W, 3); if smaller than the window, it is padded at the right and bottom.
        window: Size and overlap.
        run: Gives the logits of one window.
        colour: RGB of the padding.
    """
    height, width = image.shape[:2]
    padded = _pad(image, window.size, colour)
    size = (padded.shape[0], padded.shape[1])
    total, count = np.zeros((1, *size), np.float32), np.zeros(size, np.float32)
    for top, left in window.corners(size):
        place = slice(top, top + window.size[0]), slice(left, left + window.size[1])
        logits = run(padded[place])
        if len(total) != len(logits):  # The first window says how many classes there are.
            total = np.zeros((len(logits), *size), np.float32)
        total[:, *place] += logits
        count[place] += 1
    total /= count
    return total[:, :height, :width]


def _pad(
    image: NDArray[np.uint8], least: tuple[int, int], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    height, width = (max(a, b) for a, b in zip(image.shape, least, strict=False))
    if image.shape[:2] == (height, width):
        return image
    padded = np.empty((height, width, 3), np.uint8)
    padded[:] = colour
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
