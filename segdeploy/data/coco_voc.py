"""COCO with the 20 classes of PASCAL VOC and background; all other instances are background.

What torchvision's weights `COCO_WITH_VOC_LABELS_V1` were trained and scored on. Pixels of two
instances are ignored, as there; so are crowd regions. The training split leaves out images with no
more than 1000 annotated pixels of these classes. Layout and source: see `coco`.
"""

from __future__ import annotations

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.data.coco import THINGS, find_coco
from segdeploy.data.instances import InstanceDataset, Paint, Photo, read_instances
from segdeploy.data.sample import Dataset
from segdeploy.data.voc import CLASSES

_IN_COCO = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle",
    "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
_CATEGORIES = {name: category for category, name in THINGS.items()}
_LABELS = {
    _CATEGORIES[_IN_COCO.get(name, name)]: label for label, name in enumerate(CLASSES) if label
}
_LEAST_AREA = 1000


def open_coco_voc(root: str | None, split: str) -> Dataset:
    """Open a split of COCO with VOC's classes.

    Raises:
        DataError: If the layout is not that of `coco`, or images are missing.
    """
    file, folder = find_coco("coco_voc", root, split)
    photos = read_instances(file, folder, THINGS)
    if split == "train":
        photos = [photo for photo in photos if _area(photo) > _LEAST_AREA]
    if not photos:
        raise DataError(
            f"No image of {file} has more than {_LEAST_AREA} annotated pixels of VOC's classes.",
            hint="The training split of coco_voc leaves all others out; coco takes every image.",
        )
    name = f"coco_voc/{split}"
    return InstanceDataset(
        name, Task.MULTICLASS, CLASSES, photos, _LABELS, Paint.OVERLAP_IGNORED, file
    )


def _area(photo: Photo) -> float:
    return sum(i.area for i in photo.instances if i.category_id in _LABELS)
