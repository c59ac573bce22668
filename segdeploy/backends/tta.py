"""Test-time augmentation: several views of an image, probabilities averaged.

Each view is the image at another scale, as it is and mirrored. Its probabilities (softmax; sigmoid
of a binary or multilabel task) are mirrored back, brought to the image's size and averaged. Source:
Chen et al., "Rethinking atrous convolution for semantic image segmentation", 2017, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.backends.sliding import RunImage
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import PreprocessSpec, resize_image
from segdeploy.core.task import Task

_LEAST_SCALE, _MOST_SCALE = 0.1, 8.0
_HINT = "Write flip, scales, or both, e.g. flip,0.75,1.0,1.25."


@dataclass(frozen=True)
class TtaSpec:
    """The views: every scale (a factor on both sides), and with `flip` its mirror image too."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        wrong = [s for s in self.scales if not _LEAST_SCALE <= s <= _MOST_SCALE]
        if wrong or len(set(self.scales)) != len(self.scales) or not self.scales:
            raise ConfigError(
                f"Test-time augmentation: scales must be different numbers in {_LEAST_SCALE:g}.."
                f"{_MOST_SCALE:g}, found {self.scales}.",
                hint=_HINT,
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `flip`, `0.75,1.0,1.25` or `flip,0.75,1.0,1.25`.

        Raises:
            ConfigError: If it is none of these.
        """
        words = [word.strip() for word in text.split(",")]
        try:
            scales = tuple(float(word) for word in words if word != "flip")
        except ValueError as error:
            raise ConfigError(f"'{text}' is no test-time augmentation.", hint=_HINT) from error
        return cls(scales or (1.0,), "flip" in words)

    def to_dict(self) -> dict[str, Any]:
        """Return what results say of it."""
        return {"scales": list(self.scales), "flip": self.flip}


def average_views(
    image: NDArray[np.uint8], spec: TtaSpec, run: RunImage, preprocess: PreprocessSpec, task: Task
) -> NDArray[np.float32]:
    """Return mean probabilities (K, H, W) of an RGB image (H, W, 3).

    Args:
        image: At the size that the model is made for.
        spec: The views.
        run: Gives the logits of a view.
        preprocess: Its kernel resizes the image.
        task: What the logits mean.
    """
    views = _each_scale(image, spec, run, preprocess, task)
    total = next(views)
    for found in views:
        total += found
    total /= len(spec.scales) * (1 + spec.flip)
    return total


def _each_scale(
    image: NDArray[np.uint8], spec: TtaSpec, run: RunImage, preprocess: PreprocessSpec, task: Task
) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities (K, H, W) of each scale; with `flip`, the sum of both views."""
    original = image.shape[0], image.shape[1]
    for scale in spec.scales:
        height, width = (max(1, round(side * scale)) for side in original)
        view = resize_image(image, (height, width), preprocess)
        found = probabilities(run(view), task)
        if spec.flip:
            found += probabilities(run(np.ascontiguousarray(view[:, ::-1])), task)[..., ::-1]
        yield _resize_planes(found, original)


def probabilities(logits: NDArray[np.floating], task: Task) -> NDArray[np.float32]:
    """Return probabilities (K, H, W) of logits (K, H, W): softmax, or sigmoid per class."""
    values = logits.astype(np.float32)
    if task is not Task.MULTICLASS:
        # By the absolute value: exp of a large positive number would overflow.
        small = np.exp(-np.abs(values))
        chance: NDArray[np.float32] = np.where(values >= 0, 1, small) / (1 + small)
        return chance
    values -= values.max(axis=0)
    np.exp(values, out=values)
    values /= values.sum(axis=0)
    return values


def as_logits(chances: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """Return logits that mean these probabilities (K, H, W): `core.task` decides as ever."""
    least = np.finfo(np.float32).tiny
    logits: NDArray[np.float32] = np.log(np.maximum(chances, least))
    if task is not Task.MULTICLASS:
        logits -= np.log(np.maximum(1 - chances, least))
    return logits


def _resize_planes(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return planes (K, h, w) at `size` (H, W), bilinear, with antialias where they shrink."""
    if planes.shape[1:] == size:
        return planes
    found = np.empty((len(planes), *size), np.float32)
    for plane, target in zip(planes, found, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(plane))
        resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        target[:] = np.asarray(resized)
    return found
