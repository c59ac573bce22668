"""COCO as a semantic task: the 80 thing classes, and background where no instance is.

Layout: annotations/instances_{train,val}2017.json (or 2014) and the images in {train,val}2017/ or
images/{train,val}2017/. Labels are drawn from the instances when a sample is read: the larger ones
first, since of two that overlap the smaller one (the cup on the table) is in front more often.
Crowd regions are ignored where no instance is. Source: Lin et al., "Microsoft COCO: common objects
in context", 2014.
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.data.instances import InstanceDataset, Paint, read_instances
from segdeploy.data.layout import describe_folder, find_layout
from segdeploy.data.sample import Dataset, NoSplitError

THINGS = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign",
    14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear",
    89: "hair drier", 90: "toothbrush",
}  # fmt: skip
CLASSES = ("background", *THINGS.values())
_LABELS = {category: label for label, category in enumerate(THINGS, start=1)}
YEARS = ("2017", "2014")


def open_coco(root: str | None, split: str) -> Dataset:
    """Open a split of COCO.

    Raises:
        DataError: If the layout is not the one above, or images are missing.
    """
    file, folder = find_coco("coco", root, split)
    photos = read_instances(file, folder, THINGS)
    name = f"coco/{split}"
    return InstanceDataset(
        name, Task.MULTICLASS, CLASSES, photos, _LABELS, Paint.SMALLER_ON_TOP, file
    )


def find_coco(name: str, root: str | None, split: str) -> tuple[Path, Path]:
    """Return the file of instances and the folder of images of a split."""
    _, top = find_layout(name, root, {"COCO": ("annotations",)})
    folder = top / "annotations"
    for year in YEARS:
        file = folder / f"instances_{split}{year}.json"
        if split and file.is_file():
            return file, find_photos(top, f"{split}{year}")
    raise NoSplitError(
        f"{root} has no split '{split}': there is no {folder / f'instances_{split}2017.json'}.",
        hint=f"Found: {describe_folder(folder)}.",
    )


def find_photos(top: Path, folder: str) -> Path:
    """Return where the images of e.g. `val2017` are: below the root, or below its images/."""
    places = (top / folder, top / "images" / folder)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"There is neither {places[0]} nor {places[1]}.",
        hint=f"Unpack the images there. Found: {describe_folder(top)}.",
    )
