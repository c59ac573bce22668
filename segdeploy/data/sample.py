"""What a data set is: a sequence of samples with class names, readable without any framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task


class NoSplitError(DataError):
    """The data set has no such split, or it is not labelled: nothing is broken."""


class LabelIdError(DataError):
    """A label holds an id that is no class."""


class LabelSizeError(DataError):
    """A label and its image have different sizes."""


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    `image` is uint8 RGB (H, W, 3); `label` an integer mask (H, W) of class ids, or of 0/1 for a
    binary task, with the ignore value (255; 65535 from K = 256 on) where nothing is counted. A
    multilabel task has a mask for each class: uint8 (K, H, W) of 0 (no), 1 (yes) and 255 (ignored).
    """

    name: str
    image: NDArray[np.uint8]
    label: NDArray[np.unsignedinteger[Any]]


class Dataset(Protocol):
    """One split of a data set. Indexing reads (or draws) the sample at that moment."""

    @property
    def name(self) -> str:
        """What results call it, e.g. `camvid/val`."""

    @property
    def task(self) -> Task:
        """What its labels mean."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names; a binary task has one, the foreground."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: If a file is missing, damaged or inconsistent; names the file.
            IndexError: Beyond the end.
        """


OpenDataset = Callable[[str | None, str], Dataset]
"""A registry entry: (root or None, split) -> Dataset."""
