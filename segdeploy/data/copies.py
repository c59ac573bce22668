"""Images that a data set holds twice: the same pixels, or the same picture saved or scaled anew.

Pixels are compared by digest, whatever the format of the files. A picture that was saved or scaled
anew is known by its print, the mean brightness of 16x16 parts. In CamVid, ISBI 2012 and tinycoco no
part moved by more than 2 of 255 levels where a picture was saved as JPEG of quality 30 to 95, nor
by more than 5 where it was scaled by 0.5 to 2 (9 with hard edges). Two frames of a standing car a
second apart differ by 20 in some part, any two pictures of different splits by 54 or more.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.data.findings import Finding, Kind
from segdeploy.data.sample import Sample

_SIDE = 16
_MOST_APART = 12
_LEAST_CONTRAST = 32
"""An even picture has no print: it resembles every other of its brightness."""

_Print = NDArray[np.int16]


class Copies:
    """What was seen of the images so far, one split after the other."""

    def __init__(self) -> None:
        self._owners: dict[bytes, dict[str, tuple[str, bytes]]] = {}
        self._prints: dict[str, _Prints] = {}

    def look(self, split: str, index: int, sample: Sample) -> list[Finding]:
        """Note a sample, and return a finding for each split in which its image was seen before."""
        own = _draw_print(sample.image)
        found = self._find_same(split, index, sample)
        if all(finding.kind is not Kind.LEAK for finding in found):
            found += self._find_alike(split, index, sample.name, own)
        self._prints.setdefault(split, _Prints()).add(sample.name, own)
        return found

    def _find_same(self, split: str, index: int, sample: Sample) -> list[Finding]:
        label = _digest(sample.label)
        owners = self._owners.setdefault(_digest(sample.image), {})
        found = []
        for other, (name, other_label) in owners.items():
            text = f"{split}/{sample.name} has the same pixels as {other}/{name}"
            text += "." if label == other_label else ", but another label."
            kind = Kind.DUPLICATE if other == split else Kind.LEAK
            found.append(Finding(kind, split, text, index))
        owners.setdefault(split, (sample.name, label))
        return found

    def _find_alike(self, split: str, index: int, name: str, own: _Print) -> list[Finding]:
        others = {s: prints.find(own) for s, prints in self._prints.items() if s != split}
        return [
            Finding(
                Kind.LEAK,
                split,
                f"{split}/{name} shows the same picture as {other}/{like}, saved or scaled anew.",
                index,
            )
            for other, like in others.items()
            if like is not None
        ]


class _Prints:
    """The prints of a split; it is searched once all are there."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._found: list[_Print] = []

    def add(self, name: str, own: _Print) -> None:
        self._names.append(name)
        self._found.append(own)

    def find(self, wanted: _Print) -> str | None:
        """Return the name of the image that is most like a print, if one is."""
        if np.ptp(wanted) < _LEAST_CONTRAST:
            return None
        order, means, prints = self._by_mean
        # Where no part is further apart than this, the means are not either.
        limits = wanted.mean() + np.array([-_MOST_APART, _MOST_APART])
        first, last = np.searchsorted(means, limits)
        apart = np.abs(prints[first:last] - wanted).max(axis=1)
        if not apart.size or apart.min() > _MOST_APART:
            return None
        return self._names[int(order[first + apart.argmin()])]

    @cached_property
    def _by_mean(self) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.int16]]:
        prints = np.stack(self._found)
        order = prints.mean(axis=1).argsort()
        return order, prints[order].mean(axis=1), prints[order]


def _draw_print(image: NDArray[np.uint8]) -> _Print:
    parts = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(parts, np.int16).ravel()


def _digest(pixels: NDArray[Any]) -> bytes:
    content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    content.update(pixels.tobytes())
    return content.digest()
