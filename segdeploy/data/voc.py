"""PASCAL VOC segmentation, 2007 to 2012: 20 classes and background; the white borders are ignored.

Layout: JPEGImages/*.jpg, SegmentationClass/*.png (palette pictures, read by index) and
ImageSets/Segmentation/{train,val,trainval}.txt below VOC2012, which may itself be the root. Write
`voc:VOCdevkit/VOC2007` for the older year; its test split is labelled. Source: Everingham et al.,
"The PASCAL Visual Object Classes challenge: a retrospective", 2015.
"""

from __future__ import annotations

from segdeploy.core.task import Task
from segdeploy.data.layout import find_layout, pair_listed, read_split_list
from segdeploy.data.pairs import PairDataset
from segdeploy.data.sample import Dataset

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
BELOW = ("VOC2012", "VOCdevkit/VOC2012", "VOC2007", "VOCdevkit/VOC2007")
_NEEDED = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


def open_voc(root: str | None, split: str) -> Dataset:
    """Open a split of PASCAL VOC.

    Raises:
        DataError: If the layout is not the one above, or files of the split are missing.
    """
    _, top = find_layout("voc", root, {"PASCAL VOC": _NEEDED}, BELOW)
    names = read_split_list(top / "ImageSets" / "Segmentation", split)
    pairs = pair_listed(names, (top / "JPEGImages", ".jpg"), (top / "SegmentationClass", ".png"))
    name = f"{top.resolve().name.lower()}/{split}"
    return PairDataset(name, Task.MULTICLASS, CLASSES, pairs)
