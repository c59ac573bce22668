"""Which images choose the int8 ranges, and what is written down about it.

The images come from the train split, chosen by class coverage (`coverage`), and go through the
model's own preprocessing. They are read anew in every pass, one at a time, so memory does not
depend on their number. `calibration.json` names every image with the digest of its pixels: it is
the proof that no evaluation image was used, and part of the build key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ConfigError, DataError
from segdeploy.core.files import digest_of
from segdeploy.core.preprocess import PreprocessSpec, fit_image, normalize_image
from segdeploy.core.target import ClipMethod
from segdeploy.data import TRAIN, Dataset, open_dataset
from segdeploy.data.apart import CALIBRATION, pixel_digest
from segdeploy.export.coverage import Counted, choose_by_coverage, spread
from segdeploy.graph.clipping import TensorRange, check_percentile

RECIPE = 6  # Of int8 graphs alone: raise it when the same images and options give another one.
MIN_SIDE = 32
BY_ANSWER = "least squared change of the float network's outputs"
BY_COVERAGE, BY_SPREAD, ALL = "class coverage", "even spread", "all"

Progress = Callable[[str, int, int], object]
"""Called with (what is done, images done, images in all)."""


@dataclass(frozen=True)
class Int8Options:
    """How ranges are chosen and the graph is prepared.

    No method and no pass is best on every model; docs/calibration.md has what was measured.
    """

    method: ClipMethod = ClipMethod.MSE
    percentile: float = 99.99
    equalize: bool = False
    correct_bias: bool = False

    def check(self) -> None:
        """Raise a ConfigError if the percentile makes no sense, or is of no use."""
        check_percentile(self.percentile)
        if self.percentile != Int8Options.percentile and self.method is not ClipMethod.PERCENTILE:
            raise ConfigError(
                f"--percentile {self.percentile:g} changes nothing by the method {self.method}.",
                hint="Give --calibration-method percentile as well.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what takes part in a build key."""
        told: dict[str, Any] = {"method": str(self.method)}
        if self.method is ClipMethod.PERCENTILE:
            told["percentile"] = self.percentile
        told |= {"equalize": self.equalize, "correct_bias": self.correct_bias}
        return {**told, "recipe": RECIPE}


@dataclass(frozen=True)
class CalibrationSet:
    """Images of a data set's train split, chosen by index, and how they are used for int8."""

    spec: str
    dataset: Dataset = field(repr=False)
    indices: tuple[int, ...]
    chosen_by: str = BY_SPREAD
    options: Int8Options = field(default_factory=Int8Options)
    counted: Counted = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def images(self) -> list[dict[str, str]]:
        """Name and sha256 of the pixels of each image; reads all of them once."""
        samples = (self.dataset[index] for index in self.indices)
        return [{"name": s.name, "sha256": pixel_digest(s.image)} for s in samples]

    def few(self, count: int) -> CalibrationSet:
        """Return so many of the images, whatever order they are in: those of the least digests."""
        ranked = sorted(zip((each["sha256"] for each in self.images), self.indices, strict=True))
        return replace(self, indices=tuple(index for _, index in ranked[:count]))

    def smaller(self, count: int) -> CalibrationSet:
        """Return what `open_calibration` chooses for so many images.

        They need not be among these: candidates are spread evenly for each number anew. Labels
        that were looked at already are not read again.
        """
        return _choose(self.spec, self.dataset, count, self.options, self.counted)

    @property
    def digest(self) -> str:
        """Identity of the images."""
        return digest_of({"images": self.images})

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


def open_calibration(
    spec: str, num_images: int, options: Int8Options | None = None
) -> CalibrationSet:
    """Open a data set for calibration and choose images of its train split.

    Raises:
        ConfigError: If `num_images` is not positive, or an option makes no sense.
        DataError: If the data set is missing or empty, or a file that was looked at is damaged.
    """
    options = options or Int8Options()
    options.check()
    if num_images < 1:
        raise ConfigError(f"Calibration needs at least one image, asked for {num_images}.")
    dataset = open_dataset(spec, TRAIN)
    if not len(dataset):
        raise DataError(f"The train split of {spec} is empty.")
    return _choose(spec, dataset, num_images, options, {})


def _choose(
    spec: str, dataset: Dataset, num_images: int, options: Int8Options, counted: Counted
) -> CalibrationSet:
    if num_images >= len(dataset):
        indices, chosen_by = tuple(range(len(dataset))), ALL
    elif indices := choose_by_coverage(dataset, num_images, counted):
        chosen_by = BY_COVERAGE
    else:
        indices = spread(len(dataset), num_images)
        chosen_by = f"{BY_SPREAD}: no pixel is labelled"
    return CalibrationSet(spec, dataset, indices, chosen_by, options, counted)


def describe(
    calibration: CalibrationSet,
    ranges: Mapping[str, TensorRange],
    stored_scale: Callable[[float], float] = float,
) -> dict[str, Any]:
    """Return the document `calibration.json`; without ranges the converter chose them itself.

    `stored_scale` gives the scale as the graph holds it, where that is rounded. Magnitudes and
    shares are of all images; a share counts values more than half a step outside the grid.
    """
    options = {"options": calibration.options.to_dict()} if ranges else {}
    return {
        "data": calibration.spec,
        "split": TRAIN,
        **options,
        "chosen_by": calibration.chosen_by,
        "digest": calibration.digest,
        "images": calibration.images,
        "ranges": {name: _describe_range(each, stored_scale) for name, each in ranges.items()},
    }


def _describe_range(found: TensorRange, stored_scale: Callable[[float], float]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "abs_max": found.abs_max,
        "clip": found.clip,
        "scale": stored_scale(found.scale),
        "clipped_share": found.clipped_share,
        "asymmetric": {
            "low": found.bytes.low,
            "high": found.bytes.high,
            "scale": found.bytes.scale,
            "zero_point": found.bytes.zero_point,
            "clipped_share": found.bytes.clipped_share,
        },
    }
    if found.floor is not None:
        told["floor"] = found.floor
    if found.answer is not None:
        told["by_answer"] = {"method": BY_ANSWER, **asdict(found.answer)}
    return told


__all__ = ["CALIBRATION", "CalibrationSet", "Int8Options", "describe", "open_calibration"]
