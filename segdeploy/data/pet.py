"""Oxford-IIIT Pet: cats and dogs against background; the drawn border between them is ignored.

Layout: images/*.jpg, annotations/trimaps/*.png (1 pet, 2 background, 3 border) and
annotations/{trainval,test}.txt. `train` and `val` part the owners' trainval list: every tenth image
is validation. `trainval` and `test` are the lists themselves. Source: Parkhi et al., "Cats and
dogs", 2012.
"""

from __future__ import annotations

from segdeploy.core.task import IGNORE, Task
from segdeploy.data.layout import find_layout, pair_listed, read_split_list
from segdeploy.data.pairs import PairDataset
from segdeploy.data.sample import Dataset

_REMAP = {1: 1, 2: 0, 3: IGNORE}
_VAL_EVERY = 10


def open_pet(root: str | None, split: str) -> Dataset:
    """Open a split of Oxford-IIIT Pet.

    Raises:
        DataError: If the layout is not the one above, or files of the split are missing.
    """
    layouts = {"Oxford-IIIT Pet": ("images", "annotations/trimaps")}
    _, top = find_layout("pet", root, layouts, ("oxford-iiit-pet",))
    is_part = split in {"train", "val"}
    names = read_split_list(top / "annotations", "trainval" if is_part else split)
    if is_part:
        names = [n for i, n in enumerate(names) if (i % _VAL_EVERY == 0) == (split == "val")]
    pairs = pair_listed(names, (top / "images", ".jpg"), (top / "annotations/trimaps", ".png"))
    return PairDataset(f"pet/{split}", Task.BINARY, ("pet",), pairs, _REMAP)
