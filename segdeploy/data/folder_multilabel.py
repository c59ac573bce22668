"""Your own multilabel data: for each class a folder of masks, since classes may overlap.

    root/classes.txt                       one class name a line
    root/images/{train,val}/NAME.*         any image format
    root/labels/{train,val}/CLASS/NAME.*   masks of one class: 255 yes, 0 no, 128 not labelled

An image that does not show a class needs no mask of it. Without `train`/`val` subfolders every
fifth image (by name) is validation, as in `folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE, Task
from segdeploy.data.folder import find_folders, read_classes, take_split
from segdeploy.data.images import list_images, read_image, read_label, read_size
from segdeploy.data.pairs import check_size, unique_stems
from segdeploy.data.sample import Dataset, LabelIdError, Sample

_LAYOUT = (
    "Expected images/ and labels/ (each with train/ and val/, or flat), in labels/ a folder of "
    "masks for each class, and classes.txt with one class name a line."
)
_YES, _UNLABELLED = 255, 128

Masks = Mapping[str, Path]
"""Masks of one class by the name of the image, without suffix."""


@dataclass(frozen=True)
class MaskDataset:
    """Image files, and for each class its mask files."""

    name: str
    classes: tuple[str, ...]
    images: Sequence[Path]
    masks: tuple[Masks, ...]
    task: Task = Task.MULTILABEL

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its masks.

        Raises:
            DataError: If a file is damaged, the sizes differ, or a mask holds another value.
        """
        path = self.images[index]
        image = read_image(path)
        label = np.zeros((len(self.classes), *image.shape[:2]), np.uint8)
        for mask, files in zip(label, self.masks, strict=True):
            if path.stem in files:
                mask[:] = _read_mask(files[path.stem], image, path)
        return Sample(path.stem, image, label)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an image without decoding it; errors as of `read_size`."""
        return read_size(self.images[index])


def _read_mask(path: Path, image: NDArray[np.uint8], image_path: Path) -> NDArray[np.uint8]:
    """Return 0, 1 and the ignore value (H, W)."""
    stored = read_label(path)
    check_size(image, stored, image_path, path)
    stray = stored[~np.isin(stored, (0, _UNLABELLED, _YES))]
    if stray.size:
        raise LabelIdError(
            f"{path} holds the values {np.unique(stray)[:5].tolist()}; a mask of one class has "
            f"{_YES} (yes), 0 (no) and {_UNLABELLED} (not labelled).",
            hint="A map of class ids, or of 0 and 1, has to be written as such masks first.",
        )
    return np.where(stored == _UNLABELLED, IGNORE, stored == _YES).astype(np.uint8)


def open_folder_multilabel(root: str | None, split: str) -> Dataset:
    """Open a split of a multilabel folder.

    Raises:
        DataError: If the layout is not the one above; says what was looked for.
    """
    if root is None:
        raise DataError("folder_multilabel needs a root.", hint="Write folder_multilabel:PATH.")
    top = Path(root)
    classes = read_classes(top, _LAYOUT)
    if len(classes) > IGNORE:
        raise DataError(f"{top} has {len(classes)} classes; multilabel ends at {IGNORE}.")
    folder, labels = find_folders(top, split, _LAYOUT)
    every = list_images(folder)
    images = take_split(every, folder, split)
    if not images:
        raise DataError(f"The split '{split}' of {top} is empty.", hint=_LAYOUT)
    names = set(unique_stems(every))
    _check_class_folders(labels, classes)
    masks = tuple(_find_masks(labels / name, folder, names) for name in classes)
    return MaskDataset(f"{top.resolve().name}/{split}", classes, images, masks)


def _check_class_folders(labels: Path, classes: Sequence[str]) -> None:
    found = {p.name for p in labels.glob("[!.]*") if p.is_dir()}
    lost = [name for name in classes if name not in found]
    if lost:
        raise DataError(
            f"{labels} has no folder for {len(lost)} of {len(classes)} classes, e.g. '{lost[0]}'.",
            hint="Make an empty one for a class that no image shows.",
        )
    strange = sorted(found - set(classes))
    if strange:
        raise DataError(
            f"{labels} has folders that are no class: {strange[:5]}.",
            hint=f"The classes are {', '.join(classes[:8])}.",
        )


def _find_masks(folder: Path, images: Path, names: set[str]) -> Masks:
    masks = unique_stems(list_images(folder))
    lost = sorted(set(masks) - names)
    if lost:
        raise DataError(
            f"{len(lost)} masks in {folder} have no image in {images}, e.g. {masks[lost[0]].name}.",
            hint="A mask has its image's name, with any image suffix (PNG is usual).",
        )
    return masks
