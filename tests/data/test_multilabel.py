"""Multilabel data: the folder layout, the checks of it, and the transforms of many masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.errors import DataError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.check import check_data
from segdeploy.data.findings import Kind
from segdeploy.data.pictures import comparison, mask_palette, overlay
from segdeploy.data.sample import LabelIdError, LabelSizeError, NoSplitError, Sample
from segdeploy.data.sheet import write_sheets
from segdeploy.data.transforms import AugmentSpec, TrainTransform

CLASSES = ("road", "wet")
STORED = np.array([0, 128, 255], np.uint8)


def _save(path: Path, pixels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training images and one of validation; image 1 of `train` shows nothing wet."""
    rng = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for split, count in (("train", 3), ("val", 1)):
        for index in range(count):
            picture = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            _save(tmp_path / "images" / split / f"{index}.png", picture)
            for name in CLASSES:
                if (name, split, index) != ("wet", "train", 1):
                    mask = STORED[rng.integers(0, 3, (40, 50))]
                    _save(tmp_path / "labels" / split / name / f"{index}.png", mask)
    return tmp_path


def test_masks_are_read_class_by_class_and_a_missing_one_means_no(root: Path) -> None:
    dataset = open_dataset(f"folder_multilabel:{root}", "train")
    assert (dataset.task, dataset.classes, len(dataset)) == (Task.MULTILABEL, CLASSES, 3)
    for index in range(3):
        sample = dataset[index]
        assert sample.label.shape == (2, 40, 50)
        assert sample.label.dtype == np.uint8
        for k, name in enumerate(CLASSES):
            file = root / "labels" / "train" / name / f"{index}.png"
            stored = np.asarray(Image.open(file)) if file.exists() else np.zeros((40, 50), int)
            expected = [[{0: 0, 128: 255, 255: 1}[v] for v in row] for row in stored.tolist()]
            assert sample.label[k].tolist() == expected
    assert not dataset[1].label[1].any()
    assert dataset[0].label[0].any()


def test_flat_folders_take_every_fifth_image_for_validation(root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for index in range(6):
        _save(flat / "images" / f"{index}.png", np.full((8, 9, 3), index, np.uint8))
    for name in CLASSES:
        _save(flat / "labels" / name / "5.png", np.full((8, 9), 255, np.uint8))
    (flat / "classes.txt").write_text("\n".join(CLASSES))
    splits = [open_dataset(f"folder_multilabel:{flat}", split) for split in ("train", "val")]
    names = [[dataset[i].name for i in range(len(dataset))] for dataset in splits]
    assert names == [["1", "2", "3", "4"], ["0", "5"]]
    assert splits[1][1].label.all()
    with pytest.raises(NoSplitError, match="not 'test'"):
        open_dataset(f"folder_multilabel:{flat}", "test")
    with pytest.raises(NoSplitError, match="no split 'test'"):
        open_dataset(f"folder_multilabel:{root}", "test")


def _remove_class_folder(root: Path) -> None:
    shutil.rmtree(root / "labels" / "train" / "wet")


def _add_folder(root: Path) -> None:
    (root / "labels" / "train" / "roads").mkdir()


def _add_mask(root: Path) -> None:
    _save(root / "labels" / "train" / "wet" / "7.png", np.zeros((40, 50), np.uint8))


def _name_many(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(map(str, range(256))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_class_folder, "no folder for 1 of 2 classes, e.g. 'wet'"),
        (_add_folder, r"folders that are no class: \['roads'\]"),
        (_add_mask, r"1 masks in .*wet have no image in .*train, e.g. 7\.png"),
        (_name_many, "256 classes; multilabel ends at 255"),
        (lambda root: shutil.rmtree(root / "labels"), "no folder labels"),
        (lambda root: (root / "classes.txt").unlink(), "no classes file"),
    ],
)
def test_a_layout_that_is_not_whole_is_named(
    root: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(root)
    with pytest.raises(DataError, match=message):
        open_dataset(f"folder_multilabel:{root}", "train")


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((40, 50), np.uint8), LabelIdError, r"holds the values \[1\]; .* 255 \(yes\)"),
        (np.zeros((40, 51), np.uint8), LabelSizeError, "51x40"),
        (np.zeros((40, 50, 3), np.uint8), DataError, "colour picture"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_named(
    root: Path, mask: NDArray[np.uint8], error: type[DataError], message: str
) -> None:
    file = root / "labels" / "train" / "wet" / "0.png"
    _save(file, mask)
    with pytest.raises(error, match=message) as caught:
        open_dataset(f"folder_multilabel:{root}", "train")[0]
    assert str(file) in caught.value.message
    kinds = [f.kind for f in check_data(f"folder_multilabel:{root}").problems]
    assert kinds == [{LabelIdError: Kind.LABEL_IDS, LabelSizeError: Kind.SIZE}.get(
        error, Kind.DAMAGED)]  # fmt: skip


def test_the_check_counts_each_class_by_itself(root: Path, tmp_path: Path) -> None:
    check = check_data(f"folder_multilabel:{root}", ["train"])
    assert check
    (facts,) = check.splits
    dataset = open_dataset(f"folder_multilabel:{root}", "train")
    label = np.stack([dataset[i].label for i in range(3)])
    for k, name in enumerate(CLASSES):
        mask = label[:, k]
        assert facts.class_share[name] == pytest.approx((mask == 1).sum() / (mask != 255).sum())
    assert facts.class_images.tolist() == [3, 2]
    assert facts.ignored_share == pytest.approx((label == 255).mean())
    (sheet,) = write_sheets(check, tmp_path / "out")
    with Image.open(sheet) as picture:
        assert picture.width > 300


def test_the_overlay_mixes_the_colours_of_the_classes_of_a_pixel() -> None:
    image = np.full((1, 4, 3), 100, np.uint8)
    masks = np.array([[[1, 0, 1, 0]], [[0, 1, 1, 255]]], np.uint8)
    first, second = mask_palette()[:2].astype(float)
    drawn = overlay(image, masks, 2, alpha=0.5)
    for x, colour in enumerate((first, second, (first + second) / 2)):
        assert drawn[0, x].tolist() == np.rint(50 + colour / 2).tolist()
    assert drawn[0, 3].tolist() == [100, 100, 100]


def test_a_comparison_of_masks_has_four_panels_and_their_classes() -> None:
    image, masks = np.zeros((60, 80, 3), np.uint8), np.zeros((2, 60, 80), np.uint8)
    masks[0, :30] = 1
    plain = comparison(image, masks, masks, 2, CLASSES)
    wrong = comparison(image, masks, 1 - masks, 2, CLASSES)
    red = (plain.astype(int) == (255, 45, 85)).all(-1).sum()
    assert red == 0
    assert (wrong.astype(int) == (255, 45, 85)).all(-1).sum() > 10_000


@pytest.mark.parametrize("change", [{}, {"rotate": 20.0, "elastic": 3.0}, {"stretch": (70, 90)}])
def test_each_mask_is_transformed_as_it_would_be_alone(change: dict[str, float]) -> None:
    spec = AugmentSpec(crop=(64, 48), vertical_flip=0.5, **change)  # type: ignore[arg-type]
    transform, rng = TrainTransform(spec, PreprocessSpec(), 3), np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    masks = np.array([0, 1, 255], np.uint8)[rng.integers(0, 3, (3, 50, 60))]
    for seed in range(4):
        found, label = transform(Sample("all", image, masks), seed)
        assert label.shape == (3, 64, 48)
        assert label.dtype == torch.uint8
        for k in range(3):
            pixels, alone = transform(Sample("one", image, masks[k]), seed)
            assert torch.equal(label[k].long(), alone)
            assert torch.equal(pixels, found)
