"""PASCAL VOC with the additional labels of SBD: 20 classes and background.

Two layouts: the authors' benchmark_RELEASE/dataset with img/*.jpg, cls/*.mat and {train,val}.txt
(also train_noval.txt); or VOC2012 with SegmentationClassAug/*.png, where `train` is
ImageSets/Segmentation/trainaug.txt or train_aug.txt. SBD's own train split holds images of VOC's
val split: do not train on it and judge on `voc`. Source: Hariharan et al., "Semantic contours from
inverse detectors", 2011.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.task import Task
from segdeploy.data.layout import find_layout, pair_listed, read_split_list
from segdeploy.data.matlab import read_mat
from segdeploy.data.pairs import PairDataset, Stored
from segdeploy.data.sample import Dataset
from segdeploy.data.voc import BELOW, CLASSES

_SBD, _PNG = "SBD", "VOC2012 with SegmentationClassAug"
_LAYOUTS = {
    _SBD: ("img", "cls"),
    _PNG: ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"),
}


def open_voc_aug(root: str | None, split: str) -> Dataset:
    """Open a split of SBD or of VOC2012 with SegmentationClassAug.

    Raises:
        DataError: If neither layout is there, or files of the split are missing.
    """
    below = ("dataset", "benchmark_RELEASE/dataset", *BELOW)
    layout, top = find_layout("voc_aug", root, _LAYOUTS, below)
    name = f"voc_aug/{split}"
    if layout == _SBD:
        pairs = pair_listed(
            read_split_list(top, split), (top / "img", ".jpg"), (top / "cls", ".mat")
        )
        return PairDataset(name, Task.MULTICLASS, CLASSES, pairs, read=_read_sbd)
    lists = top / "ImageSets" / "Segmentation"
    names = read_split_list(lists, _find_list(lists) if split == "train" else split)
    pairs = pair_listed(names, (top / "JPEGImages", ".jpg"), (top / "SegmentationClassAug", ".png"))
    return PairDataset(name, Task.MULTICLASS, CLASSES, pairs)


def _find_list(folder: Path) -> str:
    """Return the name of the training list: both spellings are about."""
    return "train_aug" if (folder / "train_aug.txt").is_file() else "trainaug"


def _read_sbd(path: Path) -> Stored:
    return read_mat(path, ("GTcls", "Segmentation"))
