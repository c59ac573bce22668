"""Label maps drawn from COCO instance annotations: polygons and run lengths, by pycocotools.

The file is decoded with its segmentations left as text: COCO's 860 000 polygons would take
gigabytes as Python lists. A sample's own are parsed when it is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE, Task
from segdeploy.data.images import read_image
from segdeploy.data.pairs import check_size
from segdeploy.data.sample import Sample
from segdeploy.frameworks.coco import find_coco

Mask = NDArray[np.bool_]


class Instance(msgspec.Struct):
    """One annotation. `area` is in pixels."""

    image_id: int
    category_id: int
    segmentation: msgspec.Raw
    area: float
    iscrowd: int = 0


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[Instance]
    categories: list[_Category]


@dataclass(frozen=True)
class Photo:
    """An image file, its size (H, W) as annotated, its instances, and its id among COCO's."""

    path: Path
    size: tuple[int, int]
    instances: tuple[Instance, ...]
    image_id: int


class Paint(Enum):
    """What a pixel of two instances becomes: the smaller one's class, or ignored."""

    SMALLER_ON_TOP = auto()
    OVERLAP_IGNORED = auto()


def read_instances(file: Path, folder: Path, categories: Mapping[int, str]) -> list[Photo]:
    """Return the images of an annotation file, by their ids.

    Raises:
        DataError: If the file is damaged, has other categories, or images are missing.
        BackendUnavailableError: Without pycocotools.
    """
    find_coco()
    try:
        content = msgspec.json.decode(file.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read: {error}.", hint="Expected COCO's instance annotations."
        ) from error
    other = [c for c in content.categories if categories.get(c.id) != c.name]
    if other:
        raise DataError(
            f"{file} has the category {other[0].id} '{other[0].name}', which COCO has not.",
            hint="Only COCO's own 80 categories are read; convert your masks for `folder`.",
        )
    by_image: dict[int, list[Instance]] = defaultdict(list)
    for instance in content.annotations:
        if instance.category_id not in categories:
            raise DataError(
                f"{file} has an instance of the category {instance.category_id}, which COCO has "
                f"not (image {instance.image_id}).",
                hint="Unpack the annotations again.",
            )
        by_image[instance.image_id].append(instance)
    images = sorted(content.images, key=lambda image: image.id)
    _check_images(images, folder)
    return [
        Photo(folder / i.file_name, (i.height, i.width), tuple(by_image[i.id]), i.id)
        for i in images
    ]


def _check_images(images: Sequence[_Image], folder: Path) -> None:
    there = {path.name for path in folder.iterdir()}
    lost = [image.file_name for image in images if image.file_name not in there]
    if lost or not images:
        example = f", e.g. {folder / lost[0]}" if lost else ""
        raise DataError(
            f"{len(lost)} of {len(images)} images are missing{example}.",
            hint="Unpack the images again, whole.",
        )


@dataclass(frozen=True)
class InstanceDataset:
    """Images with drawn labels. `labels` gives the label of a category; others are background.

    `truth` is the annotation file, which the instances themselves are scored against.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    photos: Sequence[Photo]
    labels: Mapping[int, int]
    paint: Paint
    truth: Path

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and draw its label.

        Raises:
            DataError: If the image is damaged, or its annotations do not fit.
        """
        photo = self.photos[index]
        # Annotations count the pixels as they are stored, whatever way up a camera held them.
        image = read_image(photo.path, exif="ignore")
        label = self._draw(photo)
        check_size(image, label, photo.path, Path(f"annotation of {photo.path.name}"))
        return Sample(photo.path.stem, image, label)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an image as annotated, without reading it."""
        return self.photos[index].size

    def _draw(self, photo: Photo) -> NDArray[np.uint8]:
        label, times = np.zeros(photo.size, np.uint8), np.zeros(photo.size, np.uint16)
        crowd = np.zeros(photo.size, np.bool_)
        known = [i for i in photo.instances if i.category_id in self.labels]
        for instance in sorted(known, key=lambda i: -i.area):
            mask = _decode(instance, photo)
            if instance.iscrowd:
                crowd |= mask
            else:
                label[mask] = self.labels[instance.category_id]
                times += mask
        label[crowd & (times == 0)] = IGNORE
        if self.paint is Paint.OVERLAP_IGNORED:
            label[times > 1] = IGNORE
        return label


def _decode(instance: Instance, photo: Photo) -> Mask:
    """Return the pixels of an instance (H, W)."""
    from pycocotools import mask as coco_mask

    try:
        shape: Any = msgspec.json.decode(instance.segmentation)
        is_packed = isinstance(shape, dict) and isinstance(shape["counts"], str)
        runs = shape if is_packed else coco_mask.frPyObjects(shape, *photo.size)
        planes = np.atleast_3d(coco_mask.decode(runs))  # One for each polygon of the instance.
    except Exception as error:  # The C code raises nearly anything on damaged annotations.
        raise _undrawable(photo, str(error)) from error
    mask: Mask = np.asarray(planes.any(axis=2))
    if mask.shape != photo.size:
        raise _undrawable(photo, f"it has size {mask.shape}, the image {photo.size} (H, W)")
    return mask


def _undrawable(photo: Photo, why: str) -> DataError:
    return DataError(
        f"A segmentation of {photo.path} cannot be drawn: {why}.",
        hint="Unpack the annotations again.",
    )
