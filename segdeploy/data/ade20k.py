"""ADE20K, the scene parsing benchmark of 2016: 150 classes; stored 0 (everything else) is ignored.

Layout: ADEChallengeData2016/{images,annotations}/{training,validation}. A mask stores class k as
k + 1. Names are the first of the synonyms that objectInfo150 lists, in its order. Source: Zhou et
al., "Scene parsing through ADE20K dataset", 2017.
"""

from __future__ import annotations

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.layout import find_layout, find_split
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset

CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing",
    "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt",
    "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall",
    "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
_FOLDERS = {"train": "training", "val": "validation"}
_REMAP = {0: IGNORE} | {k + 1: k for k in range(len(CLASSES))}


def open_ade20k(root: str | None, split: str) -> Dataset:
    """Open a split of ADE20K.

    Raises:
        DataError: If the layout is not the one above, or a label is missing.
    """
    layouts = {"ADEChallengeData2016": ("images", "annotations")}
    _, top = find_layout("ade20k", root, layouts, ("ADEChallengeData2016",))
    folder = _FOLDERS.get(split, split)
    images, labels = find_split(top, split, f"images/{folder}", f"annotations/{folder}")
    pairs = match_by_stem(images, labels)
    return PairDataset(f"ade20k/{split}", Task.MULTICLASS, CLASSES, pairs, _REMAP)
