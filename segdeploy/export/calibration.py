"""Which images choose the int8 ranges, and what is written down about it.

The images come from the train split, spread evenly over it, and go through the model's own
preprocessing. They are read anew in every pass, one at a time, so memory does not depend on their
number. `calibration.json` names every image with the digest of its pixels: it is the proof that no
evaluation image was used, and part of the build key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ConfigError, DataError
from segdeploy.core.files import digest_of
from segdeploy.core.preprocess import PreprocessSpec, fit_image, normalize_image
from segdeploy.data import TRAIN, Dataset, open_dataset
from segdeploy.graph.calibrate import LEVELS, NUM_BINS, TensorRange

CALIBRATION = "calibration.json"
METHOD = "least squared error over a histogram of |x|, symmetric int8, weights by channel maximum"
MIN_SIDE = 32

Progress = Callable[[str, int, int], object]
"""Called with (what is done, images done, images in all)."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images of a data set's train split, chosen by index."""

    spec: str
    dataset: Dataset = field(repr=False)
    indices: tuple[int, ...]

    @cached_property
    def images(self) -> list[dict[str, str]]:
        """Name and sha256 of the pixels of each image; reads all of them once."""
        found = []
        for index in self.indices:
            sample = self.dataset[index]
            digest = hashlib.sha256(str(sample.image.shape).encode())
            digest.update(np.ascontiguousarray(sample.image).tobytes())
            found.append({"name": sample.name, "sha256": digest.hexdigest()})
        return found

    @property
    def digest(self) -> str:
        """Identity of the images and of the method."""
        return digest_of({"images": self.images, "method": METHOD, "bins": NUM_BINS})

    def batches(
        self, preprocess: PreprocessSpec, progress: Progress | None, what: str
    ) -> Iterator[NDArray[np.float32]]:
        """Yield float32 (1, 3, H, W) of every image.

        Raises:
            DataError: If an image is smaller than a model takes.
        """
        for done, index in enumerate(self.indices):
            sample = self.dataset[index]
            fitted = fit_image(sample.image, preprocess)
            if min(fitted.shape[:2]) < MIN_SIDE:
                raise DataError(
                    f"Calibration image {sample.name} is {fitted.shape[0]}x{fitted.shape[1]}; "
                    f"a model takes at least {MIN_SIDE}x{MIN_SIDE}."
                )
            yield normalize_image(fitted, preprocess)[None]
            if progress is not None:
                progress(what, done + 1, len(self.indices))


def open_calibration(spec: str, num_images: int) -> CalibrationSet:
    """Open a data set for calibration.

    Raises:
        ConfigError: If `num_images` is not positive.
        DataError: If the data set is missing or empty.
    """
    if num_images < 1:
        raise ConfigError(f"Calibration needs at least one image, asked for {num_images}.")
    dataset = open_dataset(spec, TRAIN)
    if not len(dataset):
        raise DataError(f"The train split of {spec} is empty.")
    spread = np.linspace(0, len(dataset) - 1, min(num_images, len(dataset)))
    return CalibrationSet(spec, dataset, tuple(int(i) for i in np.unique(np.rint(spread))))


def describe(calibration: CalibrationSet, ranges: Mapping[str, TensorRange]) -> dict[str, Any]:
    """Return the document `calibration.json`."""
    return {
        "data": calibration.spec,
        "split": TRAIN,
        "method": METHOD,
        "bins": NUM_BINS,
        "levels": LEVELS,
        "digest": calibration.digest,
        "images": calibration.images,
        "ranges": {
            name: {
                "abs_max": found.abs_max,
                "clip": found.clip,
                "scale": found.scale,
                "clipped_share": found.clipped_share,
            }
            for name, found in ranges.items()
        },
    }
