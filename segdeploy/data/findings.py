"""What a look at a data set finds out: raw counts are kept, shares and means are properties.

`to_dict()` is the JSON document of `segdeploy data check`; its field names are a contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class Kind(StrEnum):
    """What can be wrong, the worst first."""

    SPLIT = "split"
    DAMAGED = "damaged"
    LABEL_IDS = "label_ids"
    SIZE = "size"
    LEAK = "leak"
    DUPLICATE = "duplicate"
    NO_SPLIT = "no_split"
    ABSENT_CLASS = "absent_class"
    RARE_CLASS = "rare_class"


_WARNINGS = {Kind.DUPLICATE, Kind.NO_SPLIT, Kind.ABSENT_CLASS, Kind.RARE_CLASS}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or odd; `index` is the sample's where it is about one."""

    kind: Kind
    split: str
    message: str
    index: int | None = None

    @property
    def is_problem(self) -> bool:
        """True if training or scores on this data would be wrong; else it is a warning."""
        return self.kind not in _WARNINGS


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """Counts over the samples of one split that can be read.

    `heights` and `widths` are (smallest, largest) in pixels, None if no sample can be read.
    `levels[c, v]` counts pixels whose channel c (R, G, B) has the value v, (3, 256). Class counts
    have one entry for each of the K label names. `labelled_pixels` is one number (1,), or one for
    each class (K,) of a multilabel task, whose masks are counted one by one.
    """

    split: str
    classes: tuple[str, ...]
    num_images: int
    num_read: int
    heights: tuple[int, int] | None
    widths: tuple[int, int] | None
    levels: Counts
    class_pixels: Counts
    class_images: Counts
    labelled_pixels: Counts
    ignored_pixels: int

    @property
    def class_share(self) -> dict[str, float | None]:
        """Share of the labelled pixels, in [0, 1]; None if nothing is labelled."""
        labelled = np.broadcast_to(self.labelled_pixels, len(self.classes))
        return {
            name: int(pixels) / int(total) if total else None
            for name, pixels, total in zip(self.classes, self.class_pixels, labelled, strict=True)
        }

    @property
    def ignored_share(self) -> float | None:
        """Share of all pixels that carry the ignore value, in [0, 1]."""
        total = int(self.labelled_pixels.sum()) + self.ignored_pixels
        return self.ignored_pixels / total if total else None

    @property
    def mean(self) -> list[float] | None:
        """Mean over all pixels of R, G, B, in [0, 1]."""
        return self._moment(1)

    @property
    def std(self) -> list[float] | None:
        """Standard deviation over all pixels of R, G, B, in [0, 1]."""
        first, second = self._moment(1), self._moment(2)
        if first is None or second is None:
            return None
        return [max(0.0, b - a * a) ** 0.5 for a, b in zip(first, second, strict=True)]

    def _moment(self, power: int) -> list[float] | None:
        if not self.num_read:
            return None
        values = (np.arange(256) / 255) ** power
        moments: list[float] = (self.levels @ values / self.levels.sum(1)).tolist()
        return moments

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of `splits` of the JSON document."""
        return {
            "split": self.split,
            "num_images": self.num_images,
            "num_read": self.num_read,
            "heights": self.heights and list(self.heights),
            "widths": self.widths and list(self.widths),
            "mean": self.mean,
            "std": self.std,
            "ignored_share": self.ignored_share,
            "class_share": self.class_share,
            "class_images": dict(zip(self.classes, self.class_images.tolist(), strict=True)),
        }


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """The splits of a data set and what was found in them; `bool()` means no problem."""

    data: str
    task: str
    splits: tuple[SplitFacts, ...]
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What must be mended, the worst kind first."""
        return self._sorted(is_problem=True)

    @property
    def warnings(self) -> list[Finding]:
        """What should be known."""
        return self._sorted(is_problem=False)

    def _sorted(self, *, is_problem: bool) -> list[Finding]:
        order = list(Kind)
        found = [f for f in self.findings if f.is_problem == is_problem]
        return sorted(found, key=lambda finding: order.index(finding.kind))

    @property
    def passed(self) -> bool:
        """True if there is no problem; warnings are allowed."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `data check`."""
        return {
            "data": self.data,
            "task": self.task,
            "passed": self.passed,
            "splits": [split.to_dict() for split in self.splits],
            "problems": [_plain(finding) for finding in self.problems],
            "warnings": [_plain(finding) for finding in self.warnings],
        }


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "split": finding.split,
        "index": finding.index,
        "message": finding.message,
    }
