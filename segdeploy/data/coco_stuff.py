"""COCO-Stuff: every pixel of COCO 2017 in 80 thing and 91 stuff classes.

Layout: the PNG masks of stuffthingmaps_trainval2017 in annotations/{train,val}2017/,
stuffthingmaps/... or stuffthingmaps_trainval2017/..., the images in {train,val}2017/ or
images/{train,val}2017/. A mask stores the COCO id minus one (0 to 181; eleven of them never occur),
255 where nothing is labelled. Source: Caesar et al., "COCO-Stuff: thing and stuff classes in
context", 2018.
"""

from __future__ import annotations

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.coco import THINGS, find_photos
from segdeploy.data.layout import describe_folder, find_layout
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset, NoSplitError

STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter",
    "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble",
    "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing",
    "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf",
    "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
CLASSES = (*THINGS.values(), *STUFF)
_FIRST_STUFF = 92
_IDS = (*THINGS, *range(_FIRST_STUFF, _FIRST_STUFF + len(STUFF)))
_REMAP = dict.fromkeys(range(_IDS[-1]), IGNORE) | {k - 1: i for i, k in enumerate(_IDS)}
_MASKS = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")


def open_coco_stuff(root: str | None, split: str) -> Dataset:
    """Open a split of COCO-Stuff.

    Raises:
        DataError: If the layout is not the one above, or a mask is missing.
    """
    layouts = {f"COCO-Stuff with {folder}": (folder,) for folder in reversed(_MASKS)}
    _, top = find_layout("coco_stuff", root, layouts)
    folders = [top / masks / f"{split}2017" for masks in _MASKS]
    masks = next((folder for folder in folders if folder.is_dir()), None)
    if masks is None:
        raise NoSplitError(
            f"{root} has no split '{split}': there is no {', no '.join(map(str, folders))}.",
            hint=f"Found: {describe_folder(top)}.",
        )
    pairs = match_by_stem(find_photos(top, f"{split}2017"), masks)
    return PairDataset(f"coco_stuff/{split}", Task.MULTICLASS, CLASSES, pairs, _REMAP)
