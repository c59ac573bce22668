"""A picture is found again after it was saved or scaled anew, and no other is taken for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.data import Dataset, open_dataset
from segdeploy.data.check import check_data
from segdeploy.data.copies import Copies
from segdeploy.data.findings import Finding, Kind
from segdeploy.data.sample import Sample


def _sample(name: str, image: NDArray[np.uint8]) -> Sample:
    return Sample(name, image, np.zeros(image.shape[:2], np.uint8))


def _saved(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _scaled(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _look(train: Dataset, image: NDArray[np.uint8]) -> list[Finding]:
    copies = Copies()
    for index in range(len(train)):
        assert copies.look("train", index, train[index]) == []
    return copies.look("val", 7, _sample("copy", image))


@pytest.mark.parametrize("quality", [95, 50])
@pytest.mark.parametrize("factor", [1.0, 0.5, 1.7])
def test_a_picture_saved_and_scaled_anew_is_a_leak(quality: int, factor: float) -> None:
    train = open_dataset("synthetic:240x320:8", "train")
    image = _scaled(train[3].image, factor)
    (found,) = _look(train, _saved(image, quality))
    assert (found.kind, found.split, found.index) == (Kind.LEAK, "val", 7)
    assert found.message == (
        f"val/copy shows the same picture as train/{train[3].name}, saved or scaled anew."
    )


def test_another_picture_is_none_even_if_most_of_it_is_the_same() -> None:
    train = open_dataset("synthetic:64x80:8", "train")
    image = train[3].image.copy()
    image[24:40, 30:50] = 255 - image[24:40, 30:50]
    assert _look(train, image) == []


def test_even_pictures_resemble_each_other_without_a_leak() -> None:
    copies = Copies()
    for split, level in (("train", 100), ("val", 103)):
        image = np.full((40, 40, 3), level, np.uint8)
        assert copies.look(split, 0, _sample("even", image)) == []


def test_a_copy_in_each_of_two_splits_is_said_twice() -> None:
    image = open_dataset("synthetic:64x80:8", "train")[0].image
    copies = Copies()
    assert copies.look("train", 0, _sample("a", image)) == []
    assert len(copies.look("val", 0, _sample("b", _saved(image, 90)))) == 1
    assert len(copies.look("test", 0, _sample("c", _saved(image, 70)))) == 2


@pytest.mark.parametrize("name", ["isbi2012", "coco"])
def test_real_splits_have_no_picture_in_common(shared_data: Path, name: str) -> None:
    folder = "tinycoco" if name == "coco" else name
    check = check_data(f"{name}:{shared_data / folder}")
    assert [f for f in check.findings if f.kind in {Kind.LEAK, Kind.DUPLICATE}] == []
