"""Your own data: a folder of images, a folder of masks, and a list of classes.

    root/classes.txt             one class name a line, in the order of the label ids
    root/images/{train,val}/*    any image format
    root/labels/{train,val}/*    masks of class indices, same name, 255 where nothing is labelled

Without `train`/`val` subfolders every fifth image (by name) is validation, the rest training, so
that the split does not depend on anything but the names. One class name makes the task binary:
labels are 0 and 1, 255 where nothing is labelled. If no mask of the whole data set holds a 1, masks
are stored as 0 and 255, and 255 is the class. One mask alone cannot tell: an image without the
class, but with unlabelled pixels, has 0 and 255 as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.data.images import IMAGE_SUFFIXES, read_label
from segdeploy.data.layout import describe_folder
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset, LabelIdError, NoSplitError

_CLASS_FILES = ("classes.txt", "classes.names", "labels.txt")
_VAL_EVERY = 5
_MASKS_LOOKED_AT = 256
T = TypeVar("T")
_LAYOUT = (
    "Expected images/ and labels/ (each with train/ and val/, or flat) and classes.txt with one "
    "class name a line."
)


@dataclass(frozen=True)
class _BinaryFolder(PairDataset):
    """Masks of 0, 1 and 255 (ignored), or of 0 and 255 (the class); `masks`: of all splits."""

    masks: Sequence[Path] = ()

    def _checked(
        self, stored: NDArray[np.unsignedinteger[Any]], path: Path
    ) -> NDArray[np.unsignedinteger[Any]]:
        values = np.unique(stored)
        if 255 in values and np.isin(values, (0, 255)).all():
            if self._is_stored_as_255:
                stored = (stored == 255).astype(np.uint8)
        elif 1 in values and self.__dict__.get("_is_stored_as_255"):
            raise LabelIdError(
                f"{path} holds the id 1, but other masks of this data set store the class as 255.",
                hint="Store all masks as 0 and 1, 255 where nothing is labelled.",
            )
        return super()._checked(stored, path)

    @cached_property
    def _is_stored_as_255(self) -> bool:
        """True if no mask holds a 1; looks at masks spread over the data set until one does."""
        step = max(1, len(self.masks) // _MASKS_LOOKED_AT)
        return not any(_holds_one(mask) for mask in self.masks[::step])


def _holds_one(mask: Path) -> bool:
    try:
        return bool((read_label(mask) == 1).any())
    except DataError:
        return False  # Said by name when this mask itself is asked for.


def open_folder(root: str | None, split: str) -> Dataset:
    """Open a split of a folder data set.

    Raises:
        DataError: If the layout is not the one above; says what was looked for.
    """
    if root is None:
        raise DataError("folder needs a root.", hint="Write folder:PATH, e.g. folder:my/data.")
    top = Path(root)
    classes = read_classes(top, _LAYOUT)
    images, labels = find_folders(top, split, _LAYOUT)
    pairs = take_split(match_by_stem(images, labels), images, split)
    if not pairs:
        raise DataError(f"The split '{split}' of {top} is empty.", hint=_LAYOUT)
    name = f"{top.resolve().name}/{split}"
    if len(classes) == 1:
        every = (top / "labels").rglob("*")
        masks = sorted(p for p in every if p.suffix.lower() in IMAGE_SUFFIXES)
        return _BinaryFolder(name, Task.BINARY, classes, pairs, masks=masks)
    return PairDataset(name, Task.MULTICLASS, classes, pairs)


def read_classes(top: Path, layout: str) -> tuple[str, ...]:
    """Return the class names of a folder.

    Raises:
        DataError: If they are not listed there; `layout` says what was expected.
    """
    for file in (top / name for name in _CLASS_FILES):
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file} is not readable text: {error}.") from error
            names = tuple(line.strip() for line in lines if line.strip())
            if not names or len(set(names)) != len(names):
                raise DataError(f"{file} must list unique class names, found {list(names)}.")
            return names
    raise DataError(
        f"{top} has no classes file ({', '.join(_CLASS_FILES)}).\nFound: {describe_folder(top)}.",
        hint=layout,
    )


def find_folders(top: Path, split: str, layout: str) -> tuple[Path, Path]:
    """Return the folders of images and of labels of a split; flat ones hold both splits.

    Raises:
        NoSplitError: If there is no such split.
        DataError: If one of the folders is missing; `layout` says what was expected.
    """
    images, labels = top / "images", top / "labels"
    if not images.is_dir() or not labels.is_dir():
        lost = images if not images.is_dir() else labels
        raise DataError(f"{top} has no folder {lost.name}.", hint=layout)
    if split and (images / split).is_dir():
        return images / split, labels / split
    found = sorted(p.name for p in images.glob("[!.]*") if p.is_dir())
    if found:
        raise NoSplitError(f"{images} has no split '{split}', only {found}.", hint=layout)
    if split not in {"train", "val"}:
        raise NoSplitError(f"A flat folder has the splits train and val, not '{split}'.")
    return images, labels


def take_split(items: Sequence[T], images: Path, split: str) -> list[T]:
    """Return the items of a split, given those of the folder that `find_folders` found."""
    if images.name == split:
        return list(items)
    return [item for i, item in enumerate(items) if (i % _VAL_EVERY == 0) == (split == "val")]
