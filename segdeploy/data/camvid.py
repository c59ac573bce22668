"""CamVid street scenes in the SegNet layout: 11 classes, stored value 11 is void.

Layout: root/{train,val,test} images and root/{train,val,test}annot masks. Source: Brostow et al.,
"Semantic object classes in video", 2009; layout of the SegNet tutorial.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE, Task
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
    "Pedestrian", "Bicyclist",
)  # fmt: skip
_VOID = 11


def open_camvid(root: str | None, split: str) -> Dataset:
    """Open a split of CamVid.

    Raises:
        DataError: If root is not given or lacks the split.
    """
    if root is None:
        raise DataError("camvid needs a root.", hint="Write camvid:PATH, e.g. camvid:data/camvid.")
    images, labels = Path(root) / split, Path(root) / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise DataError(
                f"{root} is not CamVid in the SegNet layout: there is no folder {folder}.",
                hint="Expected {train,val,test}/ with images and {train,val,test}annot/ with "
                "masks of class indices.",
            )
    pairs = match_by_stem(images, labels)
    return PairDataset(f"camvid/{split}", Task.MULTICLASS, CLASSES, pairs, {_VOID: IGNORE})
