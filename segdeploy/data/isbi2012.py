"""ISBI 2012, cell membranes in electron microscopy: 30 slices of 512x512, the task of the U-Net.

Layout: images/N.png and labels/N.png for N = 0..29, in the order of the stack. A label stores
membranes as 0 and cells as 255; here the membrane is the class (label 1). Slices 0 to 19 are
`train`, 20 to 29 `val`: neighbours in the stack resemble each other, hence no interleaved split.
Source: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", 2015.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.task import Task
from segdeploy.data.images import read_bright
from segdeploy.data.layout import find_layout, pair_listed
from segdeploy.data.pairs import PairDataset, Stored
from segdeploy.data.sample import Dataset, NoSplitError

_SLICES = {"train": range(20), "val": range(20, 30)}


def open_isbi2012(root: str | None, split: str) -> Dataset:
    """Open a split of ISBI 2012.

    Raises:
        DataError: If the layout is not the one above, or slices are missing.
    """
    layouts = {"ISBI 2012": ("images", "labels")}
    _, top = find_layout("isbi2012", root, layouts)
    if split not in _SLICES:
        raise NoSplitError(f"isbi2012 has no split '{split}'.", hint="It has train and val.")
    names = [str(number) for number in _SLICES[split]]
    pairs = pair_listed(names, (top / "images", ".png"), (top / "labels", ".png"))
    return PairDataset(f"isbi2012/{split}", Task.BINARY, ("membrane",), pairs, read=_read_membrane)


def _read_membrane(path: Path) -> Stored:
    return 1 - read_bright(path)
