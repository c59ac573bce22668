"""ISBI 2012, cell membranes in electron microscopy: 30 slices of 512x512, the task of the U-Net.

Two layouts: the owners' stacks train-volume.tif and train-labels.tif; or images/N.png and
labels/N.png for N = 0..29, in the order of the stack. A label stores membranes as 0 and cells as
255; here the membrane is the class (label 1). Slices 0 to 19 are `train`, 20 to 29 `val`:
neighbours in the stack resemble each other, hence no interleaved split. Source: Arganda-Carreras et
al., "Crowdsourcing the creation of image segmentation algorithms for connectomics", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdeploy.core.task import Task
from segdeploy.data.images import read_bright, read_image
from segdeploy.data.layout import find_layout, pair_listed
from segdeploy.data.pairs import PairDataset, Stored, check_size
from segdeploy.data.sample import Dataset, NoSplitError, Sample

CLASSES = ("membrane",)
_SLICES = {"train": range(20), "val": range(20, 30)}
_FILES, _STACKS = "ISBI 2012 as files", "ISBI 2012 as stacks"
_VOLUME, _LABELS = "train-volume.tif", "train-labels.tif"
_LAYOUTS = {_FILES: ("images", "labels"), _STACKS: (_VOLUME, _LABELS)}


def open_isbi2012(root: str | None, split: str) -> Dataset:
    """Open a split of ISBI 2012.

    Raises:
        DataError: If neither layout is there, or slices are missing.
    """
    layout, top = find_layout("isbi2012", root, _LAYOUTS)
    if split not in _SLICES:
        raise NoSplitError(f"isbi2012 has no split '{split}'.", hint="It has train and val.")
    slices, name = _SLICES[split], f"isbi2012/{split}"
    if layout == _STACKS:
        return _StackDataset(name, top / _VOLUME, top / _LABELS, slices)
    names = [str(number) for number in slices]
    pairs = pair_listed(names, (top / "images", ".png"), (top / "labels", ".png"))
    return PairDataset(name, Task.BINARY, CLASSES, pairs, read=_read_membrane)


@dataclass(frozen=True)
class _StackDataset:
    """Slices of a TIFF of many pages; a missing one is a DataError when it is read."""

    name: str
    volume: Path
    labels: Path
    slices: Sequence[int]
    task: Task = Task.BINARY
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Sample:
        page = self.slices[index]
        image, label = read_image(self.volume, page=page), _read_membrane(self.labels, page)
        check_size(image, label, self.volume, self.labels)
        return Sample(str(page), image, label)


def _read_membrane(path: Path, page: int = 0) -> Stored:
    return 1 - read_bright(path, page)
