"""Sizes and colours of training pixel by pixel, against Pillow and slow loops."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.data import transforms as module
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.sample import Sample
from segdeploy.data.transforms import TrainTransform
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision.transforms import v2  # noqa: E402

PLAIN = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
SIZE = (20, 26)
STILL = AugmentSpec(crop=SIZE, scale=(1.0, 1.0), flip=0.0, jitter=0.0)
Pixels = NDArray[np.floating[Any]]


def _sample(size: tuple[int, int] = SIZE) -> Sample:
    """Smooth colours that do not reach black and white, so that stretching them shows."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 226, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return Sample("s", np.asarray(image), rng.integers(0, 5, size, dtype=np.uint8))


def _apply(spec: AugmentSpec, sample: Sample, seed: int = 0) -> tuple[Pixels, NDArray[Any]]:
    image, label = TrainTransform(spec, PLAIN, 5)(sample, seed)
    return image.numpy().transpose(1, 2, 0), label.numpy()


@pytest.mark.parametrize("size", [(7, 9), (13, 26), (20, 26), (31, 40), (50, 33)])
def test_images_are_resized_as_by_pillow_and_labels_to_the_nearest(size: tuple[int, int]) -> None:
    sample = _sample()
    spec = dataclasses.replace(STILL, crop=size, stretch=size)
    image, label = _apply(spec, sample)
    expected = Image.fromarray(sample.image).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(image - np.asarray(expected, np.float32)).max() <= 1
    for y, x in np.ndindex(*size):  # The pixel in which the centre of the new one lies.
        row, column = int((y + 0.5) * SIZE[0] / size[0]), int((x + 0.5) * SIZE[1] / size[1])
        assert label[y, x] == sample.label[row, column]


def _grey(image: Pixels) -> Pixels:
    grey: Pixels = np.floor(image @ np.array([0.299, 0.587, 0.114]))
    return grey


def _turn(image: Pixels, share: float) -> Pixels:
    """Return the image with its hue turned by a share of the circle, pixel by pixel."""
    turned = np.empty_like(image)
    for place in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        turned[place] = colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)
    return turned * 255


def _jittered(image: NDArray[np.uint8], drawn: dict[str, Any]) -> Pixels:
    """Return the image after the drawn factors in their order, in whole numbers as it is stored."""
    found = image.astype(np.float64)
    for step in drawn["fn_idx"]:
        name = ("brightness", "contrast", "saturation", "hue")[int(step)]
        factor = drawn[f"{name}_factor"]
        if factor is None:
            continue
        if name == "hue":
            found = np.rint(_turn(found, factor))
            continue
        grey = _grey(found)[..., None]
        other = {"brightness": 0 * grey, "contrast": grey.mean(), "saturation": grey}[name]
        found = np.floor(np.clip(factor * found + (1 - factor) * other, 0, 255))
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every ColorJitter draws from here on."""
    seen: list[dict[str, Any]] = []
    original = v2.ColorJitter.make_params

    def record(self: v2.ColorJitter, inputs: list[Any]) -> dict[str, Any]:
        seen.append(original(self, inputs))
        return seen[-1]

    monkeypatch.setattr(v2.ColorJitter, "make_params", record)
    return seen


def _assert_near(found: Pixels, expected: Pixels) -> None:
    """A weight of grey in the third digit may move a level, which contrast enlarges."""
    difference = np.abs(found - expected)
    assert difference.max() <= 3
    assert difference.mean() <= 0.5


@pytest.mark.parametrize("change", [{"jitter": 0.4}, {"hue": 0.5}, {"jitter": 0.3, "hue": 0.1}])
def test_colours_are_jittered_as_a_slow_loop_does(
    change: dict[str, float], drawn: list[dict[str, Any]]
) -> None:
    sample, spec = _sample(), dataclasses.replace(STILL, **change)  # type: ignore[arg-type]  # Floats.
    moved = []
    for seed in range(6):
        image, label = _apply(spec, sample, seed)
        _assert_near(image, _jittered(sample.image, drawn[-1]))
        np.testing.assert_array_equal(label, sample.label)
        moved.append(np.abs(image - sample.image).mean())
    assert len(drawn) == 6
    assert max(moved) > 8


_OPERATIONS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    ImageOps.autocontrast,
    ImageOps.equalize,
    lambda image: ImageOps.posterize(image, 4),
    lambda image: ImageOps.solarize(image, 192),
    lambda image: ImageEnhance.Sharpness(image).enhance(2.0),
)


@pytest.mark.parametrize("index", range(8))
def test_photometric_operations_are_pillows(
    index: int, monkeypatch: pytest.MonkeyPatch, drawn: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(module, "_PHOTOMETRIC", module._PHOTOMETRIC[index : index + 1])
    sample = _sample()
    image, label = _apply(dataclasses.replace(STILL, photometric=1), sample)
    np.testing.assert_array_equal(label, sample.label)
    assert np.abs(image - sample.image).mean() > 1
    if index < len(_OPERATIONS):
        assert not drawn
        expected = np.asarray(_OPERATIONS[index](Image.fromarray(sample.image)), np.float32)
        assert np.abs(image - expected).max() <= 1
    else:
        _assert_near(image, _jittered(sample.image, drawn[0]))
        name = ("brightness", "contrast", "saturation")[index - len(_OPERATIONS)]
        assert drawn[0][f"{name}_factor"] is not None
