"""DUTS, salient objects: one class against background.

Layout: DUTS-TR (split `train`) and DUTS-TE (`val`), each with DUTS-TR-Image/*.jpg and
DUTS-TR-Mask/*.png. Masks are soft: a pixel is the object from half brightness on (128 of 255), the
threshold at which the field's F-measure reads its ground truth. Source: Wang et al., "Learning to
detect salient objects with image-level supervision", 2017.
"""

from __future__ import annotations

from segdeploy.core.task import Task
from segdeploy.data.images import read_bright
from segdeploy.data.layout import find_layout, find_split
from segdeploy.data.pairs import PairDataset, match_by_stem
from segdeploy.data.sample import Dataset

_FOLDERS = {"train": "DUTS-TR", "val": "DUTS-TE"}


def open_duts(root: str | None, split: str) -> Dataset:
    """Open a split of DUTS.

    Raises:
        DataError: If the layout is not the one above, or a mask is missing.
    """
    _, top = find_layout("duts", root, {"DUTS": ()})
    folder = _FOLDERS.get(split, split)
    images, masks = find_split(top, split, f"{folder}/{folder}-Image", f"{folder}/{folder}-Mask")
    pairs = match_by_stem(images, masks)
    return PairDataset(f"duts/{split}", Task.BINARY, ("object",), pairs, read=read_bright)
