"""Where to clip an activation: four methods, over one histogram of its values.

A histogram's bins are the leading bits of the float itself: eight of the exponent, ten of the
fraction, so a bin is at most 0.1 % wide at any magnitude. Nothing has to be known of a tensor
before it is counted, one pass over the images is enough, and the counts are integers: they depend
neither on the order of the images nor on how they are grouped.

`mse` minimises the squared error of symmetric 8-bit rounding. `entropy` is the calibrator that
TensorRT describes (S. Migacz, "8-bit inference with TensorRT", GTC 2017): the clip whose quantised
distribution has the least divergence from the clipped one; of two sides of zero the wider counts,
since values below a floor all lie in one bin. Exact zeros have no error at any step and are left
out of both; after a Relu they would be most of the mass.

The same histogram gives the two ends of an asymmetric grid (`byte_range`): by `mse` for themselves,
by the other methods as far as the symmetric clip reaches into the values that were seen.

Values below a tensor's floor, which no reader tells apart, count as the floor while a range is
chosen. What is told about the tensor (largest magnitude, clipped shares) is of the values as they
are. On either grid a value is clipped that lies more than half a step outside the grid: what is
nearer is rounded to the grid's end like any other value to its nearest step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ConfigError
from segdeploy.core.target import ClipMethod
from segdeploy.graph.byte_range import ByteRange, Side, least_squared_error

LEVELS = 127
NUM_CLIPS = 200
NUM_ENTROPY_BINS = 1024  # The widest bins of a histogram near its maximum are as wide as these.
MOST_CLIPPED = 0.01
"""Of one sign's values, by `entropy`. The divergence does not count how far a value is moved: a
clip below nearly all of them (a gate's, between 0.5 and 0.8) makes two equal spikes, and would win.
"""
_FRACTION_BITS = 10
_DROPPED = 23 - _FRACTION_BITS
_LOWEST = (127 - 64) << _FRACTION_BITS  # Bins start at 2^-64; what is less counts as that.
NUM_BINS = 128 << _FRACTION_BITS  # ... and end at 2^64.
_CHUNK = 2**18  # Elements at a time: the copies stay in the processor's cache.
_MAGNITUDE = np.uint32(0x7FFFFFFF)
MOST_DB = 60.0
"""Where a signal-to-noise ratio ends: bins 0.1 % wide cannot tell such an error from none."""

_NO_VALUES = ByteRange(1.0, 0)

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class AnswerChoice:
    """A clip chosen by what the network answers, with which share of the clip by squared error.

    `tried` are all shares that were compared, on `num_images` images.
    """

    share: float
    tried: tuple[float, ...]
    num_images: int


@dataclass(frozen=True)
class TensorRange:
    """Of one tensor: largest magnitude seen, chosen clip (both >= 0), share of clipped values.

    Clipped is what lies more than half a step beyond the clip. `bytes` is the range on an
    asymmetric grid. Values below `floor` counted as it when the range was chosen, and only then.
    `answer` is there where the network's answer chose the clip.
    """

    abs_max: float
    clip: float
    clipped_share: float
    bytes: ByteRange = _NO_VALUES
    floor: float | None = None
    answer: AnswerChoice | None = None

    @property
    def scale(self) -> float:
        """Step of the symmetric int8 grid; 1 for a tensor that is always zero."""
        step = float(np.float32(self.clip / LEVELS))
        return step if step > 0 else 1.0


class Histogram:
    """Counts of one tensor's values, added to image by image.

    `signed` are the counts (2, NUM_BINS) of magnitudes above and below zero, `peaks` the largest
    magnitude of each. Values below `floor` are all the same to whoever reads the tensor.
    """

    def __init__(self, floor: float | None = None) -> None:
        self.floor = floor
        self.signed: Counts = np.zeros((2, NUM_BINS), np.int64)
        self.num_zeros = 0
        self.peaks = (0.0, 0.0)

    @property
    def counts(self) -> Counts:
        """Counts of magnitudes, whatever the sign."""
        total: Counts = self.signed.sum(0)
        return total

    @property
    def abs_max(self) -> float:
        """The largest magnitude."""
        return max(self.peaks)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.num_zeros + int(self.signed.sum())

    def raised(self) -> Histogram:
        """Return what it had been if every value below the floor had been raised to it."""
        if self.floor is None:
            return self
        floor, found = np.float32(self.floor), Histogram()
        line = np.concatenate([self.signed[1][::-1], [self.num_zeros], self.signed[0]])
        beyond = 1 + int(_bin_of(np.abs(floor))) if floor else 0
        place = NUM_BINS + int(np.sign(floor)) * beyond
        line[place] += line[:place].sum()
        line[:place] = 0
        found.signed = np.stack([line[NUM_BINS + 1 :], line[:NUM_BINS][::-1]])
        found.num_zeros = int(line[NUM_BINS])
        above, below = self.peaks
        found.peaks = (max(above, float(floor)), max(0.0, min(below, -float(floor))))
        return found

    def add(self, values: NDArray[np.float32]) -> bool:
        """Count values, as they are; False, and nothing added, if not finite.

        Returns:
            Whether all values were finite.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        found: Counts = np.zeros(2 * NUM_BINS, np.int64)
        zeros, peaks = 0, list(self.peaks)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            if not np.isfinite(part).all():
                return False
            part = part[part != 0]
            zeros += min(_CHUNK, flat.size - start) - part.size
            peaks = [max(peaks[0], part.max(initial=0)), max(peaks[1], -part.min(initial=0))]
            index = _bin_of(part) + np.signbit(part) * np.int64(NUM_BINS)
            found += np.bincount(index, minlength=2 * NUM_BINS)
        self.signed += found.reshape(2, NUM_BINS)
        self.num_zeros += zeros
        self.peaks = (float(peaks[0]), float(peaks[1]))
        return True


def _bin_of(values: NDArray[np.float32] | np.float32) -> NDArray[np.int64]:
    """Return the bin of each value's magnitude."""
    bits = values.view(np.uint32) & _MAGNITUDE
    index = (bits >> np.uint32(_DROPPED)).astype(np.int64) - _LOWEST
    found: NDArray[np.int64] = np.clip(index, 0, NUM_BINS - 1)
    return found


def edges() -> NDArray[np.float64]:
    """Return the NUM_BINS + 1 edges between bins."""
    bits = (np.arange(NUM_BINS + 1, dtype=np.uint32) + np.uint32(_LOWEST)) << np.uint32(_DROPPED)
    return bits.view(np.float32).astype(np.float64)


def choose_clip(
    found: Histogram, method: ClipMethod = ClipMethod.MSE, percentile: float = 99.99
) -> TensorRange:
    """Return the range of a tensor by one method; the clip lies in (0, abs_max].

    Where there is a floor, values below it count as it, so that they do not widen the range.

    Raises:
        ConfigError: If `percentile` is not within (0, 100].
    """
    check_percentile(percentile)
    seen, found = found, found.raised()
    counts = found.counts
    used = np.flatnonzero(counts)
    if not used.size or found.abs_max <= 0:
        return _range_at(seen, 0.0, 0.0, 0.0)
    bounds = edges()
    centre = _centres(used, bounds, found.abs_max)
    weight = counts[used]
    if method is ClipMethod.MIN_MAX:
        clip = found.abs_max
    elif method is ClipMethod.PERCENTILE:
        wanted = percentile / 100 * found.total - found.num_zeros
        index = int(np.searchsorted(np.cumsum(weight), wanted)) if wanted > 0 else used.size - 1
        clip = float(bounds[used[min(index, used.size - 1)] + 1])
    elif method is ClipMethod.ENTROPY:
        sides = zip(found.signed, found.peaks, strict=True)
        clip = max(_least_divergence(bounds, side, peak) for side, peak in sides if peak > 0)
    else:
        clip = _least_squared_error(centre, weight, found.abs_max)
    clip = min(clip, found.abs_max)
    return _range_at(seen, clip, *_choose_bytes(found, method, clip))


def clip_at(found: Histogram, chosen: TensorRange, share: float) -> TensorRange:
    """Return a tensor's range with its clip, and both ends of its bytes, at a share of theirs.

    The nearer end of the bytes is moved only where it would reach farther than the other.
    """
    low, high = chosen.bytes.low, chosen.bytes.high
    far = share * max(-low, high)
    return _range_at(found, share * chosen.clip, max(low, -far), min(high, far))


def _range_at(found: Histogram, clip: float, low: float, high: float) -> TensorRange:
    """Return the range with these ends, and how much of the tensor they clip."""
    grid = ByteRange.between(low, high)
    whole = replace(grid, clipped_share=clipped_share(found, grid.scale, grid.low, grid.high))
    told = TensorRange(found.abs_max, clip, 0.0, whole, found.floor)
    reach = LEVELS * told.scale
    return replace(told, clipped_share=clipped_share(found, told.scale, -reach, reach))


def clipped_share(found: Histogram, step: float, low: float, high: float) -> float:
    """Return the share of all values more than half a step outside a grid from low to high."""
    ends = zip((_side(found, sign) for sign in (0, 1)), (high, -low), strict=True)
    outside = sum(float(side.weight[side.magnitude > end + step / 2].sum()) for side, end in ends)
    return outside / max(found.total, 1)


def _choose_bytes(found: Histogram, method: ClipMethod, clip: float) -> tuple[float, float]:
    """Return both ends of the asymmetric grid."""
    positive, negative = (_side(found, sign) for sign in (0, 1))
    if method is ClipMethod.MSE:
        return least_squared_error(negative, positive)
    return -min(clip, negative.limit), min(clip, positive.limit)


def _side(found: Histogram, sign: int) -> Side:
    """Return the values above (0) or below (1) zero, each bin at its centre."""
    used = np.flatnonzero(found.signed[sign])
    limit = found.peaks[sign]
    return Side(_centres(used, edges(), limit), found.signed[sign][used].astype(np.float64), limit)


def _centres(
    used: NDArray[np.intp], bounds: NDArray[np.float64], limit: float
) -> NDArray[np.float64]:
    """Return what the values of each bin count as; the last bin has no upper end."""
    centre = np.minimum((bounds[used] + bounds[used + 1]) / 2, limit)
    return np.where(used == NUM_BINS - 1, limit, centre)


def signal_to_noise(found: Histogram, step: float, low: float, high: float) -> float:
    """Return the power of a tensor's values over that of their error on a grid, in dB.

    The values of each bin are rounded as the grid does; at most MOST_DB. Zeros have no error.
    """
    power = error = 0.0
    for sign in (0, 1):
        side = _side(found, sign)
        values = side.magnitude if sign == 0 else -side.magnitude
        rounded = np.clip(np.rint(values / step) * step, low, high)
        power += float(np.dot(side.weight, values**2))
        error += float(np.dot(side.weight, (rounded - values) ** 2))
    if error <= power * 10 ** (-MOST_DB / 10):
        return MOST_DB
    return 10 * float(np.log10(power / error))


def check_percentile(percentile: float) -> None:
    """Raise a ConfigError unless it is within (0, 100]."""
    if not 0 < percentile <= 100:
        raise ConfigError(
            f"The calibration's percentile must be above 0 and at most 100, found {percentile}.",
            hint="99.99 is usual: one value in 10,000 is clipped.",
        )


def _least_squared_error(centre: NDArray[np.float64], weight: Counts, limit: float) -> float:
    """Return the clip with the least expected squared error of 8-bit rounding.

    Inside the clip c the step is c / 127 and its error step^2 / 12 (x^2 for values that round to
    zero); outside, the error is (x - c)^2.
    """
    clips = limit * np.arange(1, NUM_CLIPS + 1) / NUM_CLIPS
    share = weight.astype(np.float64)
    errors = [float(np.dot(share, _squared_error(centre, float(c)))) for c in clips]
    return float(clips[int(np.argmin(errors))])


def _squared_error(centre: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    step = clip / LEVELS
    inside = np.minimum(centre**2, step**2 / 12)
    return np.where(centre > clip, (centre - clip) ** 2, inside)


def _least_divergence(bounds: NDArray[np.float64], counts: Counts, limit: float) -> float:
    """Return the clip at which the quantised distribution diverges least from the clipped one.

    Equal bins are cut out of those of the histogram; what a bin holds counts as spread over it.
    Clips beyond which more than `MOST_CLIPPED` lies are not asked.
    """
    wanted = limit * np.arange(NUM_ENTROPY_BINS + 1) / NUM_ENTROPY_BINS
    wanted[-1] = bounds[-1]  # The maximum lies inside the last bin that is filled.
    linear = np.diff(np.interp(wanted, bounds, np.append(0, np.cumsum(counts))))
    beyond = 1 - np.cumsum(linear) / linear.sum()
    least = int(np.argmax(beyond <= MOST_CLIPPED)) + 1
    sizes = range(max(LEVELS + 1, least), NUM_ENTROPY_BINS + 1)
    best = min(sizes, key=lambda size: _divergence(linear, size))
    return limit * best / NUM_ENTROPY_BINS


def _divergence(linear: NDArray[np.float64], size: int) -> float:
    """Return KL(P || Q): P the first `size` bins, the last with all beyond; Q P in 128 levels."""
    kept = linear[:size]
    reference = kept.copy()
    reference[-1] += linear[size:].sum()
    level = np.arange(size) * (LEVELS + 1) // size
    mass = np.bincount(level, weights=kept, minlength=LEVELS + 1)
    filled = np.bincount(level, weights=kept > 0, minlength=LEVELS + 1)
    spread = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    candidate = np.where(kept > 0, spread[level], 0.0)
    if ((reference > 0) & (candidate == 0)).any():
        return float("inf")  # What is clipped into an empty last bin is mass that Q cannot express.
    both = reference > 0
    p, q = reference[both] / reference.sum(), candidate[both] / candidate.sum()
    return float((p * np.log(p / q)).sum())
