"""PASCAL-Context: the 59 frequent classes of whole scenes on VOC2010; everything else is ignored.

Two layouts below VOC2010 (with JPEGImages): the authors' trainval/*.mat of 459 ids, with VOC's own
ImageSets/Main/{train,val}.txt; or the usual conversion SegmentationClassContext/*.png of 59 classes
stored as 1 to 59, with ImageSets/SegmentationContext/{train,val}.txt. Source: Mottaghi et al., "The
role of context for object detection and semantic segmentation in the wild", 2014.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.layout import find_layout, pair_listed, read_split_list
from segdeploy.data.matlab import read_mat
from segdeploy.data.pairs import PairDataset, Stored
from segdeploy.data.sample import Dataset

_IDS = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25,
    "boat": 31, "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59,
    "cat": 65, "ceiling": 68, "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104,
    "curtain": 105, "dog": 113, "door": 115, "fence": 144, "floor": 158, "flower": 159, "food": 162,
    "grass": 187, "ground": 189, "horse": 207, "keyboard": 220, "light": 232, "motorbike": 258,
    "mountain": 259, "mouse": 260, "person": 284, "plate": 295, "platform": 296, "pottedplant": 308,
    "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354, "sign": 355,
    "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CLASSES = tuple(_IDS)
_NUM_STORED = 460
_REMAP_MAT = dict.fromkeys(range(_NUM_STORED), IGNORE) | {k: i for i, k in enumerate(_IDS.values())}
_REMAP_PNG = {0: IGNORE} | {k + 1: k for k in range(len(CLASSES))}
_PNG, _MAT = "PASCAL-Context as PNG", "PASCAL-Context as .mat"
_LAYOUTS = {
    _PNG: ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"),
    _MAT: ("JPEGImages", "trainval", "ImageSets/Main"),
}


def open_pascal_context(root: str | None, split: str) -> Dataset:
    """Open a split of PASCAL-Context.

    Raises:
        DataError: If neither layout is there, or files of the split are missing.
    """
    below = ("VOC2010", "VOCdevkit/VOC2010")
    layout, top = find_layout("pascal_context", root, _LAYOUTS, below)
    name, images = f"pascal_context/{split}", (top / "JPEGImages", ".jpg")
    if layout == _PNG:
        names = read_split_list(top / "ImageSets" / "SegmentationContext", split)
        pairs = pair_listed(names, images, (top / "SegmentationClassContext", ".png"))
        return PairDataset(name, Task.MULTICLASS, CLASSES, pairs, _REMAP_PNG)
    names = read_split_list(top / "ImageSets" / "Main", split)
    pairs = pair_listed(names, images, (top / "trainval", ".mat"))
    return PairDataset(name, Task.MULTICLASS, CLASSES, pairs, _REMAP_MAT, _read_context)


def _read_context(path: Path) -> Stored:
    return read_mat(path, ("LabelMap",))
