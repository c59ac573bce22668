"""What a candidate is compared on: groups of image batches, at several sizes.

Real images of a data set's validation split where one is given, else the seeded scenes of the
`synthetic` set: structured, never zeros, never only noise, since flat inputs hide most faults. A
batch is uint8 NHWC at the model's size; each side normalises it by its own manifest, so that a
wrong mean or channel order in a manifest is a fault that shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.contract import InputKind, SizeBounds
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import (
    PreprocessSpec,
    fit_image,
    normalize_image,
    resize_image,
)
from segdeploy.data import VAL, Dataset, open_dataset
from segdeploy.data.apart import Judges, check_apart, read_calibrated

Batch = NDArray[np.uint8]

ODD_SIZES = ((2, 97, 130), (1, 225, 231))
"""(N, H, W): no side divides by 32; exporters that bake in a size or round one fail here."""

DEFAULT_SIZE = (256, 320)
DEFAULT_IMAGES = 8
_LARGEST_AREA = 2**21  # Larger images are shrunk: their logits would not fit small machines.
_SMALLEST_SIDE = 32  # Smaller ones are enlarged: no model of the zoo promises to take them.


@dataclass(frozen=True)
class Case:
    """A named group of batches; `batches()` reads them anew each time, one by one."""

    name: str
    source: str
    batches: Callable[[], Iterator[Batch]]


def plan_cases(folder: ModelFolder, data: str | None, num_images: int) -> list[Case]:
    """Return the groups on which to compare an artifact.

    Args:
        folder: A static artifact is run at its own size only.
        data: `name:root` of real images, or None.
        num_images: How many images at the model's own size, spread over the split.

    Raises:
        ConfigError: If `num_images` is not positive.
        DataError: If the data set cannot be opened. Reading a case: if an image calibrated it.
    """
    if num_images < 1:
        raise ConfigError(f"At least one image is needed, asked for {num_images}.")
    manifest = folder.manifest
    batch, height, width = input_size(manifest)
    static = (height, width) if height and width else None
    size = static or manifest.design_size or DEFAULT_SIZE
    images = _Images(data, size, num_images, read_calibrated(folder.path))
    usual = manifest.bounds.usual if manifest.bounds else static
    own = _own_size(images, manifest.preprocess, usual, batch or 1)
    cases = [Case("images", images.source, own)]
    if static is None:
        for n, h, w in dict.fromkeys(_fit(odd, manifest.bounds) for odd in ODD_SIZES):
            cases.append(_cut_out(images, batch or n, (h, w), manifest.preprocess))
    elif batch is None and (manifest.bounds is None or manifest.bounds.max_batch > 1):
        cases.append(_cut_out(images, 2, static, manifest.preprocess))
    return cases


def find_judges(data: str, num_images: int = DEFAULT_IMAGES) -> Judges:
    """Return the images of a data set that `verify` compares on.

    Raises:
        DataError: If the data set cannot be opened.
    """
    dataset = open_dataset(data, VAL)
    return Judges(dataset, _spread(dataset, num_images))


def _spread(dataset: Dataset, count: int) -> list[int]:
    """Return the indices of so many images, evenly spread over the split."""
    found = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
    return [int(index) for index in found.round()]


def _fit(odd: tuple[int, int, int], bounds: SizeBounds | None) -> tuple[int, int, int]:
    """Return the nearest (N, H, W) that a payload was built for."""
    if bounds is None:
        return odd
    height, width = (
        min(max(side, low), high)
        for side, low, high in zip(odd[1:], bounds.least, bounds.largest, strict=True)
    )
    return min(odd[0], bounds.max_batch), height, width


def input_size(manifest: Manifest) -> tuple[int | None, int | None, int | None]:
    """Return (N, H, W) of the input; None is dynamic."""
    shape = manifest.inputs[0].shape
    if manifest.io.input is InputKind.IMAGE:
        return shape[0], shape[1], shape[2]
    return shape[0], shape[2], shape[3]


def feed(batch: Batch, manifest: Manifest) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Return a uint8 NHWC batch as the input that a folder's contract asks for."""
    if manifest.io.input is InputKind.IMAGE:
        return batch
    return np.stack([normalize_image(image, manifest.preprocess) for image in batch])


class _Images:
    """A few images of a data set, evenly spread over it."""

    def __init__(
        self,
        data: str | None,
        size: tuple[int, int],
        count: int,
        calibrated: Mapping[str, str],
    ) -> None:
        self._calibrated = calibrated
        height, width = (max(_SMALLEST_SIDE, side) for side in size)
        self._dataset = open_dataset(data or f"synthetic:{height}x{width}", VAL)
        self.source = self._dataset.name
        self.indices = _spread(self._dataset, count)

    def __getitem__(self, position: int) -> Batch:
        sample = self._dataset[self.indices[position % len(self.indices)]]
        return check_apart(sample, self.source, self._calibrated).image

    def __len__(self) -> int:
        return len(self.indices)


def _own_size(
    images: _Images, spec: PreprocessSpec, static: tuple[int, int] | None, batch: int
) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        for position in range(len(images)):
            fitted = _bounded(fit_image(images[position], spec), spec)
            if static is not None:
                fitted = resize_image(fitted, static, spec)
            yield np.repeat(fitted[None], batch, axis=0)

    return batches


def _bounded(image: Batch, spec: PreprocessSpec) -> Batch:
    """Return the image, resized if its size is outside what every machine and model takes."""
    height, width = image.shape[:2]
    ratio = min(1.0, (_LARGEST_AREA / (height * width)) ** 0.5)
    size = max(_SMALLEST_SIDE, int(height * ratio)), max(_SMALLEST_SIDE, int(width * ratio))
    return resize_image(image, size, spec)


def _cut_out(images: _Images, count: int, size: tuple[int, int], spec: PreprocessSpec) -> Case:
    """A case of another size with the same content at the same scale.

    Resized images would be content that int8 ranges were never chosen for: a fault of the question,
    not of the artifact.
    """

    def batches() -> Iterator[Batch]:
        fitted = (_bounded(fit_image(images[i], spec), spec) for i in range(count))
        yield np.stack([_centre(image, size) for image in fitted])

    return Case(f"{count}x{size[0]}x{size[1]}", images.source, batches)


def _centre(image: Batch, size: tuple[int, int]) -> Batch:
    """Return the middle of an image (h, w, 3) at `size` (H, W), mirrored at its edges if needed."""
    lacking = [max(0, new - old) for new, old in zip(size, image.shape[:2], strict=True)]
    sides = [(n // 2, n - n // 2) for n in lacking]
    wide = np.pad(image, [*sides, (0, 0)], mode="symmetric")
    top, left = ((old - new) // 2 for new, old in zip(size, wide.shape[:2], strict=True))
    return np.ascontiguousarray(wide[top : top + size[0], left : left + size[1]])
