"""DRIVE, retinal vessels: one class; what lies outside the camera's round field is ignored.

Layout: {training,test} with images/NN_*.tif, 1st_manual/NN_manual1.gif and mask/NN_*_mask.gif.
`train` is training, `val` is test (its first manual segmentation). Source: Staal et al.,
"Ridge-based vessel segmentation in color images of the retina", 2004.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE, Task
from segdeploy.data.images import read_bright
from segdeploy.data.layout import check_files, find_layout, find_split
from segdeploy.data.pairs import PairDataset, Stored
from segdeploy.data.sample import Dataset, LabelSizeError

_FOLDERS = {"train": "training", "val": "test"}
_LAYOUTS = {"DRIVE": ("training",), "the test part of DRIVE": ("test",)}


def open_drive(root: str | None, split: str) -> Dataset:
    """Open a split of DRIVE.

    Raises:
        DataError: If the layout is not the one above, or a label is missing.
    """
    _, top = find_layout("drive", root, _LAYOUTS, ("DRIVE",))
    folder = _FOLDERS.get(split, split)
    images, labels = find_split(top, split, f"{folder}/images", f"{folder}/1st_manual")
    found = sorted(images.glob("[0-9]*_*.tif"))
    if not found:
        raise DataError(f"There are no images in {images}.", hint="Expected NN_training.tif.")
    pairs = check_files([(p, labels / f"{_number(p)}_manual1.gif") for p in found])
    return PairDataset(f"drive/{split}", Task.BINARY, ("vessel",), pairs, read=_read_vessels)


def _number(path: Path) -> str:
    return path.name.partition("_")[0]


def _read_vessels(path: Path) -> Stored:
    field_path = _find_field(path)
    vessels, field = read_bright(path), read_bright(field_path)
    if vessels.shape != field.shape:
        raise LabelSizeError(
            f"{field_path} has size {field.shape}, {path} {vessels.shape} (H, W).",
            hint="The mask of the field must have the size of the image.",
        )
    return np.where(field == 1, vessels, IGNORE).astype(np.uint8)


def _find_field(label: Path) -> Path:
    folder = label.parent.parent / "mask"
    found = sorted(folder.glob(f"{_number(label)}_*mask.gif"))
    if not found:
        raise DataError(
            f"There is no {folder / _number(label)}_*mask.gif.",
            hint="DRIVE's mask/ says where the camera's field ends; unpack the data set again.",
        )
    return found[0]
