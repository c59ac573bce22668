"""A data set of image files and label files side by side: what most layouts come down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task, ignore_value
from segdeploy.data.images import list_images, read_image, read_label
from segdeploy.data.sample import Sample


@dataclass(frozen=True)
class PairDataset:
    """Pairs of an image file and a label file.

    `remap` sends stored label values to others (say void 11 to 255) before they are checked.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    pairs: Sequence[tuple[Path, Path]]
    remap: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            DataError: If a file is damaged, the sizes differ, or a label id is out of range.
        """
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        label = self._checked(read_label(label_path), label_path)
        if label.shape != image.shape[:2]:
            raise DataError(
                f"{label_path} is {label.shape[1]}x{label.shape[0]}, its image {image_path} "
                f"{image.shape[1]}x{image.shape[0]} (width x height).",
                hint="Image and label must have the same size.",
            )
        return Sample(image_path.stem, image, label)

    def _checked(
        self, stored: NDArray[np.unsignedinteger[Any]], path: Path
    ) -> NDArray[np.unsignedinteger[Any]]:
        label = stored.copy() if self.remap else stored
        for old, new in self.remap.items():
            label[stored == old] = new
        num_ids = 2 if self.task is Task.BINARY else len(self.classes)
        ignored = ignore_value(num_ids)
        wrong = (label >= num_ids) & (label != ignored)
        if wrong.any():
            found = np.unique(label[wrong])[:5].tolist()
            raise DataError(
                f"{path} holds label ids {found}; with {num_ids} classes they must be below "
                f"{num_ids}, or {ignored} (ignored).",
                hint="Fix the mask or the list of classes.",
            )
        return label


def match_by_stem(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Return (image, label) for every image, matched by file name without suffix.

    Raises:
        DataError: If a folder is missing or empty, an image has no label, or two files of one
            folder have the same stem, so that the match would be a guess.
    """
    found = list_images(images)
    if not found:
        raise DataError(f"There are no images in {images}.")
    _unique_stems(found)
    by_stem = _unique_stems(list_images(labels))
    lost = [p.name for p in found if p.stem not in by_stem]
    if lost:
        raise DataError(
            f"{len(lost)} images in {images} have no label in {labels}, e.g. {lost[0]}.",
            hint="A label has its image's name, with any image suffix (PNG is usual).",
        )
    return [(p, by_stem[p.stem]) for p in found]


def _unique_stems(files: Sequence[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other is not file:
            raise DataError(
                f"{file.parent} holds both {other.name} and {file.name}.",
                hint="Images and labels are matched by name without suffix; keep one of the two.",
            )
    return by_stem
