"""Decision flips: where a candidate's prediction differs from a reference's, and whether it may.

With r the reference's logits, c the candidate's, d = c - r, a the reference's top class:

- a flip is *impossible* where max_k(d_k - d_a) < margin = r_a - max_{k != a} r_k, because then
  c_a > c_k for all k. A shift common to all classes cancels: the certificate is gauge-free. For a
  binary task (K = 1, threshold 0) the same reads |d| < |r|. Such pixels are *certified*.
- a flip a -> b is *excusable* if the reference hardly preferred a: r_a - r_b <= tolerance. The
  tolerance comes from the reference alone, so no candidate can widen it. Other flips are *hard*.

The gauge-free deviation of a pixel is max_k d_k - min_k d_k (binary: |d|): the largest change of
the difference of any two logits. Only sums are kept, over row bands of bounded size. A pixel whose
candidate (or reference) has a NaN or an infinity is a hard flip, whatever its argmax says.

A multilabel task decides K times a pixel, each time as a binary task does: what is counted as a
pixel below is one such decision, and it has 2 K label ids, for each class no and yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.task import Task
from segdeploy.metrics.confusion import label_names

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
_BAND_ELEMENTS = 2**21  # 16 MiB a float64 array: a few of them fit any machine.


def decision_names(task: Task, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the L label ids that a `FlipCount` tells apart."""
    if task is not Task.MULTILABEL:
        return label_names(task, classes)
    return tuple(name for each in classes for name in (f"not {each}", each))


class FlipCount:
    """Streaming comparison of a candidate with a reference.

    Args:
        task: What the logits mean.
        num_classes: L, the number of label ids (`decision_names`): 2 for a binary task.
        tolerance: Largest reference gap, in logit units, at which a flip is excusable.
    """

    def __init__(self, task: Task, num_classes: int, tolerance: float = 0.0) -> None:
        self.task = task
        self.num_classes = num_classes
        self.tolerance = tolerance
        self.num_pixels = 0
        self.num_flips = 0
        self.num_hard = 0
        self.num_certified = 0
        self.num_broken = 0
        self.num_broken_reference = 0
        self.class_pixels = np.zeros(num_classes, np.int64)
        self.class_flips = np.zeros(num_classes, np.int64)
        self.has_logits = False
        self.max_abs = 0.0
        self.max_deviation = 0.0
        self._energy = np.zeros(3)  # Sums of r * r, c * c, r * c over finite pixels.
        self._noise_energy = 0.0
        channels = num_classes if task is Task.MULTICLASS else num_classes // 2
        # Per channel: finite pixels, and over these the sums of centred r, r^2, d^2.
        self._channels = np.zeros((4, channels))

    def update(self, reference: Floats, candidate: Floats) -> None:
        """Compare logits of equal shape (N, K, H, W)."""
        if reference.shape != candidate.shape:
            raise ValueError(f"logits have shapes {reference.shape} and {candidate.shape}")
        self.has_logits = True
        for image, rows in _bands(reference):
            r, c = (_pixels_first(x[image, :, rows]) for x in (reference, candidate))
            for channels in self._deciders:
                self._compare(r[:, channels], c[:, channels], channels)

    def update_labels(self, reference: Floats, labels: NDArray[np.integer[Any]]) -> None:
        """Compare logits (N, K, H, W) with a candidate that gives labels (N, H, W) only.

        Raises:
            ValueError: If the shapes do not fit, or the task is multilabel: it has no label map.
        """
        if self.task is Task.MULTILABEL:
            raise ValueError("a multilabel prediction is not one label map")
        if labels.shape != (reference.shape[0], *reference.shape[2:]):
            raise ValueError(f"labels {labels.shape} do not fit logits {reference.shape}")
        for image, rows in _bands(reference):
            r = _pixels_first(reference[image, :, rows])
            found = labels[image, rows].reshape(-1).astype(np.int64)
            known = (found >= 0) & (found < self.num_classes)
            self._count(r, np.where(known, found, 0), ~known)

    def add(self, other: FlipCount) -> None:
        """Add the counts of another comparison of the same task, classes and tolerance."""
        for name in (
            "num_pixels", "num_flips", "num_hard", "num_certified", "num_broken",
            "num_broken_reference", "class_pixels", "class_flips", "_energy", "_noise_energy",
            "_channels",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.has_logits |= other.has_logits
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_deviation = max(self.max_deviation, other.max_deviation)

    @property
    def _deciders(self) -> list[slice]:
        """The channels that decide together; for multilabel, each decides alone."""
        if self.task is not Task.MULTILABEL:
            return [slice(None)]
        return [slice(k, k + 1) for k in range(self.num_classes // 2)]

    def _compare(self, r: Doubles, c: Doubles, channels: slice) -> None:
        """Compare pixels x channels, float64; `channels` says which of all they are."""
        broken = np.logical_not(np.isfinite(c).all(axis=1))
        self._count(r, self._decide(c), broken, first_id=2 * (channels.start or 0))
        sound = ~broken & np.isfinite(r).all(1)
        r, c = r[sound], c[sound]
        if not len(r):
            return
        d = c - r
        centre = self.task is Task.MULTICLASS
        deviation = d.max(1) - d.min(1) if centre else np.abs(d[:, 0])
        self.max_abs = max(self.max_abs, float(np.abs(d).max()))
        self.max_deviation = max(self.max_deviation, float(deviation.max()))
        self.num_certified += int(np.count_nonzero(self._certified(r, d)))
        self._energy += np.sum(r * r), np.sum(c * c), np.sum(r * c)
        self._noise_energy += float(np.sum(d * d))
        if centre:
            r, d = r - r.mean(1, keepdims=True), d - d.mean(1, keepdims=True)
        num = np.full(r.shape[1], float(len(r)))
        self._channels[:, channels] += np.stack([num, r.sum(0), (r * r).sum(0), (d * d).sum(0)])

    def _decide(self, logits: Doubles) -> NDArray[np.int64]:
        if self.task is not Task.MULTICLASS:
            return (logits[:, 0] > 0).astype(np.int64)
        top: NDArray[np.int64] = logits.argmax(1)
        return top

    def _certified(self, r: Doubles, d: Doubles) -> NDArray[np.bool_]:
        if self.task is not Task.MULTICLASS:
            sure: NDArray[np.bool_] = np.abs(d[:, 0]) < np.abs(r[:, 0])
            return sure
        if r.shape[1] == 1:
            return np.ones(len(r), np.bool_)  # One class: nothing to flip to.
        two = np.partition(r, -2, axis=1)[:, -2:]
        push = d.max(1) - _at(d, r.argmax(1))
        certified: NDArray[np.bool_] = push < two[:, 1] - two[:, 0]
        return certified

    def _count(
        self,
        r: Doubles,
        found: NDArray[np.int64],
        broken: NDArray[np.bool_],
        *,
        first_id: int = 0,
    ) -> None:
        """Count decisions; `broken` pixels are hard flips whatever `found` says."""
        bad_reference = ~np.isfinite(r).all(1)
        top = self._decide(r)
        flipped = (found != top) | broken | bad_reference
        if self.task is not Task.MULTICLASS:
            gap = np.abs(r[:, 0])
        else:
            with np.errstate(invalid="ignore"):  # inf - inf of a broken reference.
                gap = _at(r, top) - _at(r, found)
        hard = (flipped & (gap > self.tolerance)) | broken | bad_reference
        self.num_pixels += len(r)
        self.num_flips += int(np.count_nonzero(flipped))
        self.num_hard += int(np.count_nonzero(hard))
        self.num_broken += int(np.count_nonzero(broken))
        self.num_broken_reference += int(np.count_nonzero(bad_reference))
        ids = top + first_id
        self.class_pixels += np.bincount(ids, minlength=self.num_classes)
        self.class_flips += np.bincount(ids[flipped], minlength=self.num_classes)

    @property
    def flip_rate(self) -> float:
        """Share of pixels that are decided differently, in [0, 1]."""
        return self.num_flips / max(1, self.num_pixels)

    @property
    def hard_flip_rate(self) -> float:
        """Share of pixels that flip although the reference was sure, in [0, 1]."""
        return self.num_hard / max(1, self.num_pixels)

    @property
    def certified_rate(self) -> float | None:
        """Share of pixels whose flip is impossible; None without logits."""
        return self.num_certified / max(1, self.num_pixels) if self.has_logits else None

    @property
    def class_flip_rate(self) -> list[float | None]:
        """Per label id, the share of the reference's pixels that flip; None if it has none."""
        return [
            int(flips) / int(pixels) if pixels else None
            for flips, pixels in zip(self.class_flips, self.class_pixels, strict=True)
        ]

    @property
    def snr_db(self) -> float | None:
        """10 log10(sum r^2 / sum d^2); None without logits, or where one of the sums is 0."""
        return _decibel(float(self._energy[0]), self._noise_energy)

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between all logits as vectors; None where one of them is 0."""
        own, other, cross = (float(v) for v in self._energy)
        length = (own**0.5) * (other**0.5)
        return max(-1.0, min(1.0, cross / length)) if length > 0 else None

    @property
    def channel_snr_db(self) -> list[float | None]:
        """Per channel, the mean variance of all channels of r over the mean square of its d, in dB.

        Both centred over the classes first, which removes what decides nothing. It sees a swapped
        or erased class that wins no pixel of the inputs. None where there is no noise.
        """
        num, *sums = self._channels
        if not num.all():
            return [None] * len(num)
        mean, square, noise = sums / num
        signal = float(np.mean(square - mean**2))
        return [_decibel(signal, float(n)) for n in noise]

    @property
    def channel_noise(self) -> list[float]:
        """Per channel, the root mean square of d centred over the classes, in logit units."""
        num, noise = np.maximum(self._channels[0], 1), self._channels[3]
        return [float(n) for n in np.sqrt(noise / num)]


def _decibel(signal: float, noise: float) -> float | None:
    if signal <= 0 or noise <= 0:
        return None
    return float(10 * (np.log10(signal) - np.log10(noise)))


def _at(values: Doubles, channel: NDArray[np.int64]) -> Doubles:
    """Return one value of each row."""
    return np.take_along_axis(values, channel[:, None], axis=1)[:, 0]


def _bands(logits: Floats) -> Iterator[tuple[int, slice]]:
    num_images, channels, height, width = logits.shape
    step = max(1, _BAND_ELEMENTS // max(1, channels * width))
    for image in range(num_images):
        for start in range(0, height, step):
            yield image, slice(start, start + step)


def _pixels_first(logits: Floats) -> Doubles:
    """Return (K, h, W) as float64 (h * W, K)."""
    return logits.reshape(logits.shape[0], -1).T.astype(np.float64)
