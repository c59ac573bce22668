"""Synthetic scenes are seeded, structured, of any size, and labelled exactly."""

from __future__ import annotations

import numpy as np
import pytest

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.data import open_dataset


def test_a_scene_depends_on_split_and_index_only() -> None:
    first, again = (open_dataset("synthetic:48x64:40", "train") for _ in range(2))
    for index in (3, 0, 39):
        np.testing.assert_array_equal(first[index].image, again[index].image)
        np.testing.assert_array_equal(first[index].label, again[index].label)
    assert (first[0].image != first[1].image).any()
    other = open_dataset("synthetic:48x64:40", "val")
    assert (first[0].image != other[0].image).any()
    longer = open_dataset("synthetic:48x64:99", "train")
    np.testing.assert_array_equal(first[7].image, longer[7].image)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 513), (200, 40)])
def test_any_size_from_32_on_has_a_void_border_and_objects(size: tuple[int, int]) -> None:
    dataset = open_dataset(f"synthetic:{size[0]}x{size[1]}:8", "train")
    for index in range(8):
        sample = dataset[index]
        assert sample.image.shape == (*size, 3)
        assert sample.image.dtype == sample.label.dtype == np.uint8
        void = sample.label == 255
        inner = np.zeros(size, bool)
        inner[2:-2, 2:-2] = True
        np.testing.assert_array_equal(void, ~inner)
        assert sample.label[inner].max() < len(dataset.classes)
        assert sample.image.std() > 5


def test_every_class_occurs_in_every_default_split() -> None:
    for split in ("train", "val"):
        dataset = open_dataset("synthetic:64x96:64", split)
        counts = sum(
            np.bincount(dataset[i].label.ravel(), minlength=256) for i in range(len(dataset))
        )
        assert np.asarray(counts)[: len(dataset.classes)].min() > 100


def test_objects_can_be_told_from_the_background_by_colour() -> None:
    dataset = open_dataset("synthetic", "train")
    means = {}
    for k in range(1, len(dataset.classes)):
        pixels = [s.image[s.label == k] for s in (dataset[i] for i in range(20))]
        means[k] = np.concatenate(pixels).mean(axis=0)
    distances = [np.abs(means[a] - means[b]).max() for a in means for b in means if a < b]
    assert min(distances) > 15


def test_counts_are_as_asked_and_validation_has_a_quarter() -> None:
    assert len(open_dataset("synthetic", "train")) == 256
    assert len(open_dataset("synthetic", "val")) == 64
    assert len(open_dataset("synthetic:32x32:3", "train")) == 3
    assert len(open_dataset("synthetic:32x32:3", "val")) == 1
    for index in (3, -1):
        with pytest.raises(IndexError):
            open_dataset("synthetic:32x32:3", "train")[index]


def test_the_binary_set_has_the_same_scenes_with_one_foreground() -> None:
    scenes = open_dataset("synthetic:48x64:8", "train")
    binary = open_dataset("synthetic_binary:48x64:8", "train")
    assert (binary.task, len(binary.classes)) == (Task.BINARY, 1)
    for index in range(8):
        many, one = scenes[index], binary[index]
        np.testing.assert_array_equal(many.image, one.image)
        np.testing.assert_array_equal(one.label == 1, (many.label > 0) & (many.label < 255))
        np.testing.assert_array_equal(one.label == 255, many.label == 255)


def test_the_multilabel_set_has_the_same_scenes_with_a_mask_for_each_kind_and_one_of_all() -> None:
    scenes = open_dataset("synthetic:48x64:8", "train")
    masks = open_dataset("synthetic_multilabel:48x64:8", "train")
    assert masks.task is Task.MULTILABEL
    assert masks.classes == (*scenes.classes[1:], "object")
    for index in range(8):
        many, sample = scenes[index], masks[index]
        np.testing.assert_array_equal(many.image, sample.image)
        for k, mask in enumerate(sample.label):
            expected = many.label == k + 1 if k < 4 else (many.label > 0) & (many.label < 255)
            np.testing.assert_array_equal(mask == 1, expected)
            np.testing.assert_array_equal(mask == 255, many.label == 255)


@pytest.mark.parametrize(
    "root",
    ["31x64", "64x31", "0x0", "96", "96x", "axb", "-96x128", "96x128:0", "96x128:-1", "96x128:",
     "96x128:2:3", "9.5x9", "999999x999999"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["synthetic", "synthetic_binary", "synthetic_multilabel"])
def test_a_root_that_is_no_size_is_a_data_error(name: str, root: str) -> None:
    with pytest.raises(DataError):
        open_dataset(f"{name}:{root}", "val")


def test_an_unknown_split_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no split 'valid'"):
        open_dataset("synthetic", "valid")
