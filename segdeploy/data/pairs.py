"""A data set of image files and label files side by side: what most layouts come down to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE_WIDE, Task, ignore_value, label_dtype
from segdeploy.data.images import list_images, read_image, read_label, read_size
from segdeploy.data.layout import describe_folder
from segdeploy.data.sample import LabelIdError, LabelSizeError, Sample

Stored = NDArray[np.unsignedinteger[Any]]

_UNKNOWN = IGNORE_WIDE - 1  # No class: label maps end at 16 bits, and no data set has as many.


@dataclass(frozen=True)
class PairDataset:
    """Pairs of an image file and a label file.

    `remap` gives the label of each value that may be stored (say 255 for void 11); without it
    labels are stored as they are. The ignore value needs no entry. `read` returns what a label file
    stores, (H, W).
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    pairs: Sequence[tuple[Path, Path]]
    remap: Mapping[int, int] = field(default_factory=dict)
    read: Callable[[Path], Stored] = read_label

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            DataError: If a file is damaged, the sizes differ, or a label id is out of range.
        """
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        label = self._checked(self.read(label_path), label_path)
        check_size(image, label, image_path, label_path)
        return Sample(image_path.stem, image, label)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an image without decoding it.

        Raises:
            DataError: If the file is missing or no image.
        """
        return read_size(self.pairs[index][0])

    def _checked(self, stored: Stored, path: Path) -> Stored:
        label = self._table[stored] if self.remap else stored
        num_ids = 2 if self.task is Task.BINARY else len(self.classes)
        ignored = ignore_value(num_ids)
        wrong = (label >= num_ids) & (label != ignored)
        if wrong.any():
            found = np.unique(stored[wrong])[:5].tolist()
            raise LabelIdError(
                f"{path} holds label ids {found}; {self._expected(num_ids)}, or {ignored} "
                "(ignored).",
                hint="Fix the mask or the list of classes.",
            )
        return label.astype(label_dtype(num_ids)) if self.remap else label

    def _expected(self, num_ids: int) -> str:
        if self.remap:
            return f"those of {self.name} are {min(self.remap)} to {max(self.remap)}"
        return f"with {num_ids} classes they must be below {num_ids}"

    @cached_property
    def _table(self) -> NDArray[np.uint16]:
        """The label of every 16-bit value."""
        table = np.full(IGNORE_WIDE + 1, _UNKNOWN, np.uint16)
        ignored = ignore_value(len(self.classes))
        table[ignored] = ignored
        table[list(self.remap)] = list(self.remap.values())
        return table


def check_size(image: NDArray[np.uint8], label: Stored, image_path: Path, label_path: Path) -> None:
    """Raise a LabelSizeError that names both files unless image and label have the same size."""
    if label.shape != image.shape[:2]:
        raise LabelSizeError(
            f"{label_path} is {label.shape[1]}x{label.shape[0]}, its image {image_path} "
            f"{image.shape[1]}x{image.shape[0]} (width x height).",
            hint="Image and label must have the same size.",
        )


def match_by_stem(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Return (image, label) for every image, matched by file name without suffix.

    Raises:
        DataError: If a folder is missing or empty, an image has no label, or two files of one
            folder have the same stem, so that the match would be a guess.
    """
    found = list_images(images)
    if not found:
        raise DataError(
            f"There are no images in {images}.", hint=f"Found: {describe_folder(images)}."
        )
    unique_stems(found)
    by_stem = unique_stems(list_images(labels))
    lost = [p.name for p in found if p.stem not in by_stem]
    if lost:
        raise DataError(
            f"{len(lost)} images in {images} have no label in {labels}, e.g. {lost[0]}.",
            hint="A label has its image's name, with any image suffix (PNG is usual).",
        )
    return [(p, by_stem[p.stem]) for p in found]


def unique_stems(files: Sequence[Path]) -> dict[str, Path]:
    """Return files by their name without suffix.

    Raises:
        DataError: If two of them have the same, so that a match by it would be a guess.
    """
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other is not file:
            raise DataError(
                f"{file.parent} holds both {other.name} and {file.name}.",
                hint="Images and labels are matched by name without suffix; keep one of the two.",
            )
    return by_stem
