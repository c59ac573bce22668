"""Where to clip an activation at both ends: ranges of unsigned bytes with a zero point.

A symmetric grid spends half of its bytes below zero, whatever lies there: nothing behind a Relu,
-0.375 at most behind a HardSwish. Runtimes that take a zero point (ONNX Runtime, OpenVINO) get the
range that the values need. Zero is always a grid point, since padding writes zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
NUM_CLIPS = 200

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ByteRange:
    """A grid of bytes: its step, the byte that stands for 0, the share of clipped values.

    Clipped are those more than half a step outside; the others are rounded to a step.
    """

    scale: float
    zero_point: int
    clipped_share: float = 0.0

    @classmethod
    def between(cls, low: float, high: float) -> ByteRange:
        """Return the grid over low <= 0 <= high, moved by at most half a step so that it hits 0.

        A tensor that is always zero gets a step of 1.
        """
        step = float(np.float32((high - low) / LEVELS)) or 1.0
        return cls(step, int(np.clip(np.rint(-low / step), 0, LEVELS)))

    @property
    def low(self) -> float:
        """The real that the byte 0 stands for."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The real that the byte 255 stands for."""
        return (LEVELS - self.zero_point) * self.scale


@dataclass(frozen=True)
class Side:
    """Magnitudes of the values on one side of zero, ascending, how often each, and the largest."""

    magnitude: Values
    weight: Values
    limit: float

    def clips(self) -> Values:
        """Return the clips to try; a side without values has none but zero."""
        if not self.magnitude.size:
            return np.zeros(1)
        clips: Values = self.limit * np.arange(1, NUM_CLIPS + 1) / NUM_CLIPS
        return clips

    def beyond(self, clips: Values) -> tuple[Values, Values]:
        """Return (number of values beyond each clip, their summed squared distance to it)."""
        first = np.searchsorted(self.magnitude, clips, side="right")
        zeroth, linear, square = (
            np.append(np.cumsum((self.weight * self.magnitude**power)[::-1])[::-1], 0.0)[first]
            for power in range(3)
        )
        distance = square - 2 * clips * linear + clips**2 * zeroth
        return zeroth, np.maximum(distance, 0.0)


def least_squared_error(negative: Side, positive: Side) -> tuple[float, float]:
    """Return the (low, high) with the least expected squared error of rounding to 255 steps.

    Inside, the error is step^2 / 12 (x^2 for values that round to zero); outside, the squared
    distance to the end. Zeros have none and are not counted.
    """
    lows, highs = negative.clips(), positive.clips()
    (few_below, far_below), (few_above, far_above) = negative.beyond(lows), positive.beyond(highs)
    rounding = (lows[:, None] + highs[None]) ** 2 / LEVELS**2 / 12
    magnitude = np.concatenate([negative.magnitude, positive.magnitude])
    order = np.argsort(magnitude, kind="stable")
    weight = np.concatenate([negative.weight, positive.weight])[order]
    square = magnitude[order] ** 2
    small = np.searchsorted(square, rounding)
    power, number = (
        np.append(0.0, np.cumsum(each)) for each in (weight * square, weight)
    )  # fmt: skip
    inside = power[small] + rounding * (number[-1] - number[small])
    inside -= rounding * (few_below[:, None] + few_above[None])
    error = inside + far_below[:, None] + far_above[None]
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return -float(lows[low]), float(highs[high])
