"""CamVid street scenes in the SegNet layout: 11 classes, stored value 11 is void.

Layout: root/{train,val,test} images and root/{train,val,test}annot masks. Source: Brostow et al.,
"Semantic object classes in video", 2009; layout of the SegNet tutorial.
"""

from __future__ import annotations

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.layout import find_layout, find_split
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car",
    "Pedestrian", "Bicyclist",
)  # fmt: skip
_REMAP = {k: k for k in range(len(CLASSES))} | {len(CLASSES): IGNORE}


def open_camvid(root: str | None, split: str) -> Dataset:
    """Open a split of CamVid.

    Raises:
        DataError: If root is not given or lacks the split.
    """
    _, top = find_layout("camvid", root, {"CamVid in the SegNet layout": ()})
    images, labels = find_split(top, split, split, f"{split}annot")
    return PairDataset(
        f"camvid/{split}", Task.MULTICLASS, CLASSES, match_by_stem(images, labels), _REMAP
    )
