"""Cityscapes, fine annotations: 19 classes of street scenes, as its benchmark counts them.

Layout: leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/ with
*_gtFine_labelIds.png, or *_gtFine_labelTrainIds.png where the owners' script made them. The test
split is not labelled. Source: Cordts et al., "The Cityscapes dataset for semantic urban scene
understanding", 2016.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.layout import Pairs, check_files, find_layout, find_split
from segdeploy.data.pairs import PairDataset
from segdeploy.data.sample import Dataset, NoSplitError

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The stored id of each class: `numpy.take(LABEL_IDS, labels)` is what the benchmark takes."""
_NUM_STORED = 34
_REMAP = dict.fromkeys(range(_NUM_STORED), IGNORE) | {k: i for i, k in enumerate(LABEL_IDS)}
_IMAGE_END = "_leftImg8bit.png"


def open_cityscapes(root: str | None, split: str) -> Dataset:
    """Open a split of Cityscapes.

    Raises:
        DataError: If the layout is not the one above, or files of the split are missing.
    """
    _, top = find_layout("cityscapes", root, {"Cityscapes": ("leftImg8bit", "gtFine")})
    if split == "test":
        raise NoSplitError(
            "The labels of Cityscapes' test split are not published.", hint="Use train or val."
        )
    images, labels = find_split(top, split, f"leftImg8bit/{split}", f"gtFine/{split}")
    is_by_id = any(labels.glob("*/*_gtFine_labelIds.png"))
    end = "_gtFine_labelIds.png" if is_by_id else "_gtFine_labelTrainIds.png"
    pairs = check_files(_find_pairs(images, labels, end))
    remap = _REMAP if is_by_id else {}
    return PairDataset(f"cityscapes/{split}", Task.MULTICLASS, CLASSES, pairs, remap)


def _find_pairs(images: Path, labels: Path, label_end: str) -> Pairs:
    found = sorted(images.glob(f"*/*{_IMAGE_END}"))
    if not found:
        raise NoSplitError(
            f"There are no images in {images}.", hint=f"Expected CITY/*{_IMAGE_END} in it."
        )
    return [
        (p, labels / p.parent.name / (p.name.removesuffix(_IMAGE_END) + label_end)) for p in found
    ]
