"""Published layouts with their own label codes: Cityscapes, ADE20K, Pet, DUTS, DRIVE, ISBI 2012."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task
from segdeploy.data import DATASETS, open_dataset
from segdeploy.data.ade20k import CLASSES as ADE20K
from segdeploy.data.cityscapes import CLASSES as CITYSCAPES
from segdeploy.data.cityscapes import LABEL_IDS
from segdeploy.data.sample import LabelIdError, LabelSizeError, NoSplitError
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision.datasets import Cityscapes, OxfordIIITPet  # noqa: E402

SIZE = (6, 8)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _photo(path: Path, seed: int = 0) -> None:
    _save(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def _mask(path: Path, values: Any, seed: int = 0) -> NDArray[np.uint8]:
    """Write a mask of values drawn at random; a range of them all occurs."""
    values = np.asarray(values, np.uint8)
    ids = np.resize(np.random.default_rng(seed).permutation(values), SIZE)
    _save(path, ids)
    return ids


CITIES = {
    "train": ("aachen_000000_000019", "bochum_000000_000313"),
    "val": ("lindau_000001_000019",),
}


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two training images of two cities, one for validation, with all 34 ids."""
    for split, names in CITIES.items():
        for seed, name in enumerate(names):
            city = name.partition("_")[0]
            _photo(tmp_path / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", seed)
            stem = tmp_path / "gtFine" / split / city / f"{name}_gtFine"
            _mask(stem.with_name(f"{stem.name}_labelIds.png"), range(34), seed)
            _mask(stem.with_name(f"{stem.name}_instanceIds.png"), range(34), seed)
    return tmp_path


def test_the_19_cityscapes_classes_are_torchvisions() -> None:
    theirs = {c.train_id: c for c in Cityscapes.classes if 0 <= c.train_id < 255}
    assert tuple(theirs[k].name for k in range(19)) == CITYSCAPES
    assert tuple(theirs[k].id for k in range(19)) == LABEL_IDS


@pytest.mark.parametrize("split", ["train", "val"])
def test_cityscapes_equals_torchvision_and_its_table(cityscapes: Path, split: str) -> None:
    ours = open_dataset(f"cityscapes:{cityscapes}", split)
    theirs = Cityscapes(cityscapes, split, target_type="semantic")
    order = np.argsort(theirs.images)  # Theirs is the order of the file system.
    to_train = np.array([c.train_id for c in Cityscapes.classes if c.id >= 0])
    assert [ours[i].name.removesuffix("_leftImg8bit") for i in range(len(ours))] == [*CITIES[split]]
    assert len(ours) == len(theirs)
    for index, there in enumerate(order):
        image, target = theirs[int(there)]
        np.testing.assert_array_equal(ours[index].image, np.asarray(image))
        np.testing.assert_array_equal(ours[index].label, to_train[np.asarray(target)])


def test_cityscapes_takes_train_ids_where_only_they_are(cityscapes: Path) -> None:
    folder = cityscapes / "gtFine" / "val" / "lindau"
    (folder / "lindau_000001_000019_gtFine_labelIds.png").unlink()
    ids = _mask(folder / "lindau_000001_000019_gtFine_labelTrainIds.png", [*range(19), 255])
    np.testing.assert_array_equal(open_dataset(f"cityscapes:{cityscapes}")[0].label, ids)


def test_cityscapes_mistakes_are_named(cityscapes: Path) -> None:
    with pytest.raises(NoSplitError, match="not published"):
        open_dataset(f"cityscapes:{cityscapes}", "test")
    label = cityscapes / "gtFine" / "train" / "bochum" / "bochum_000000_000313_gtFine_labelIds.png"
    _mask(label, [34])
    with pytest.raises(LabelIdError, match=r"bochum.* holds label ids \[34\]; .* are 0 to 33"):
        open_dataset(f"cityscapes:{cityscapes}", "train")[1]
    label.unlink()
    with pytest.raises(DataError, match=r"1 of 2 labels are missing, e\.g\. .*bochum_000000"):
        open_dataset(f"cityscapes:{cityscapes}", "train")
    (cityscapes / "leftImg8bit").rename(cityscapes / "rightImg8bit")
    with pytest.raises(DataError, match=r"no .*leftImg8bit\.") as caught:
        open_dataset(f"cityscapes:{cityscapes}")
    assert "Found: gtFine/, rightImg8bit/ in" in str(caught.value)


def test_the_150_ade_classes_are_in_the_order_of_object_info() -> None:
    assert len(set(ADE20K)) == len(ADE20K) == 150
    # Idx and the first synonym, from the owners' objectInfo150.
    rows = {1: "wall", 13: "person", 21: "car", 37: "lamp", 50: "fireplace", 61: "river",
            76: "swivel chair", 90: "television", 103: "van", 118: "cradle", 128: "bicycle",
            137: "traffic light", 142: "crt screen", 150: "flag"}  # fmt: skip
    assert {k: ADE20K[k - 1] for k in rows} == rows


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
def test_ade20k_is_shifted_by_one_and_zero_is_ignored(tmp_path: Path, below: str) -> None:
    top = tmp_path / below
    for split, folder in (("train", "training"), ("val", "validation")):
        _photo(top / "images" / folder / "ADE_00000001.jpg")
        label = top / "annotations" / folder / "ADE_00000001.png"
        stored = _mask(label, range(103, 151), seed=len(split))
        stored[0] = 0
        _save(label, stored)
        found = open_dataset(f"ade20k:{tmp_path}", split)[0].label
        np.testing.assert_array_equal(found, np.where(stored == 0, 255, stored.astype(int) - 1))
        _mask(label, [151])
        with pytest.raises(LabelIdError, match=r"\[151\]"):
            open_dataset(f"ade20k:{tmp_path}", split)[0]
    label.unlink()
    with pytest.raises(DataError, match=r"1 images in .* have no label in .*ADE_00000001\.jpg"):
        open_dataset(f"ade20k:{tmp_path}", "val")
    label.parent.rmdir()
    with pytest.raises(DataError, match="is not whole: there is no folder"):
        open_dataset(f"ade20k:{tmp_path}", "val")


@pytest.fixture
def pet(tmp_path: Path) -> Path:
    """Twelve listed images, one more for the test."""
    top = tmp_path / "oxford-iiit-pet"
    lists = {"trainval": [f"Abyssinian_{k}" for k in range(12)], "test": ["beagle_1"]}
    for split, names in lists.items():
        for seed, name in enumerate(names):
            _photo(top / "images" / f"{name}.jpg", seed)
            _mask(top / "annotations" / "trimaps" / f"{name}.png", [1, 2, 3], seed)
        rows = "".join(f"{name} 1 1 1\n" for name in names)
        (top / "annotations" / f"{split}.txt").write_text(rows)
    rows = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\nbeagle_1 5 2 4\n"
    (top / "annotations" / "list.txt").write_text(rows)
    return tmp_path


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_pet_equals_torchvision(pet: Path, split: str) -> None:
    ours = open_dataset(f"pet:{pet}", split)
    theirs = OxfordIIITPet(pet, split, target_types="segmentation")
    assert (ours.task, ours.classes, len(ours)) == (Task.BINARY, ("pet",), len(theirs))
    for index, (image, trimap) in enumerate(theirs):
        np.testing.assert_array_equal(ours[index].image, np.asarray(image))
        stored = np.asarray(trimap)
        np.testing.assert_array_equal(ours[index].label == 1, stored == 1)
        np.testing.assert_array_equal(ours[index].label == 0, stored == 2)
        np.testing.assert_array_equal(ours[index].label == 255, stored == 3)


def test_pet_parts_trainval_and_refuses_other_codes(pet: Path) -> None:
    parts = {}
    for split in ("train", "val"):
        dataset = open_dataset(f"pet:{pet}", split)
        parts[split] = [dataset[i].name for i in range(len(dataset))]
    assert parts["val"] == ["Abyssinian_0", "Abyssinian_10"]
    assert sorted(parts["train"] + parts["val"]) == sorted(f"Abyssinian_{k}" for k in range(12))
    assert open_dataset(f"pet:{pet}", "list")[0].name == "beagle_1"  # Its comments are no names.
    _mask(pet / "oxford-iiit-pet" / "annotations" / "trimaps" / "beagle_1.png", [0, 1])
    with pytest.raises(LabelIdError, match=r"\[0\]; those of pet/test are 1 to 3"):
        open_dataset(f"pet:{pet}", "test")[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_duts_is_the_object_from_half_brightness_on(tmp_path: Path, mode: str) -> None:
    for split, name in (("train", "DUTS-TR"), ("val", "DUTS-TE")):
        _photo(tmp_path / name / f"{name}-Image" / "a.jpg")
        soft = np.resize(np.array([0, 1, 127, 128, 254, 255], np.uint8), SIZE)
        mask = tmp_path / name / f"{name}-Mask" / "a.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(soft).convert(mode).save(mask)
        dataset = open_dataset(f"duts:{tmp_path}", split)
        assert (dataset.task, dataset.name) == (Task.BINARY, f"duts/{split}")
        np.testing.assert_array_equal(dataset[0].label, soft > 127.5)
    with pytest.raises(NoSplitError):
        open_dataset(f"duts:{tmp_path}", "test")
    mask.unlink()
    with pytest.raises(DataError, match=r"1 images .* no label"):
        open_dataset(f"duts:{tmp_path}", "val")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """The folder DRIVE: one image of each part; the field ends before the last column."""
    for folder, number in (("training", "21"), ("test", "01")):
        top = tmp_path / "DRIVE" / folder
        _photo(top / "images" / f"{number}_{folder}.tif")
        _mask(top / "1st_manual" / f"{number}_manual1.gif", [0, 255])
        field = np.full(SIZE, 255, np.uint8)
        field[:, -1] = 0
        _save(top / "mask" / f"{number}_{folder}_mask.gif", field)
    return tmp_path / "DRIVE"


@pytest.mark.parametrize(
    ("split", "folder", "number"), [("train", "training", "21"), ("val", "test", "01")]
)
def test_drive_counts_vessels_inside_the_field_only(
    tmp_path: Path, drive: Path, split: str, folder: str, number: str
) -> None:
    assert len(open_dataset(f"drive:{tmp_path}", split)) == 1
    label = open_dataset(f"drive:{drive}", split)[0].label
    top = drive / folder
    with Image.open(top / "1st_manual" / f"{number}_manual1.gif") as picture:
        vessels = np.asarray(picture.convert("L")) // 255
    np.testing.assert_array_equal(label[:, :-1], vessels[:, :-1])
    assert set(label[:, -1]) == {255}
    _save(top / "mask" / f"{number}_{folder}_mask.gif", np.zeros((3, 3), np.uint8))
    with pytest.raises(LabelSizeError, match="mask"):
        open_dataset(f"drive:{drive}", split)[0]
    (top / "mask" / f"{number}_{folder}_mask.gif").unlink()
    with pytest.raises(DataError, match=rf"no .*{number}_\*mask\.gif"):
        open_dataset(f"drive:{drive}", split)[0]
    (top / "1st_manual" / f"{number}_manual1.gif").unlink()
    with pytest.raises(NoSplitError, match="None of the 1 images has a label"):
        open_dataset(f"drive:{drive}", split)
    (top / "images" / f"{number}_{folder}.tif").unlink()
    with pytest.raises(DataError, match="no images"):
        open_dataset(f"drive:{drive}", split)


@pytest.mark.parametrize(("split", "slices"), [("train", range(20)), ("val", range(20, 30))])
def test_isbi_membranes_are_the_dark_pixels_of_the_stack_in_order(
    shared_data: Path, split: str, slices: range
) -> None:
    dataset = open_dataset(f"isbi2012:{shared_data / 'isbi2012'}", split)
    assert (dataset.task, dataset.classes, len(dataset)) == (
        Task.BINARY, ("membrane",), len(slices),
    )  # fmt: skip
    for index in (0, len(slices) - 1):
        sample = dataset[index]
        assert sample.name == str(slices[index])
        assert sample.image.shape == (512, 512, 3)
        with Image.open(shared_data / "isbi2012" / "labels" / f"{sample.name}.png") as picture:
            stored = np.asarray(picture)
        np.testing.assert_array_equal(sample.label, stored == 0)
        assert 0.1 < sample.label.mean() < 0.4  # Membranes are the thin part.
    with pytest.raises(NoSplitError):
        open_dataset(f"isbi2012:{shared_data / 'isbi2012'}", "test")


def test_isbi_stacks_are_read_page_by_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 256, (30, *SIZE), dtype=np.uint8)
    cells = rng.choice(np.array([0, 255], np.uint8), (30, *SIZE))
    for name, stack in (("train-volume.tif", volume), ("train-labels.tif", cells)):
        first, *others = map(Image.fromarray, stack)
        first.save(tmp_path / name, save_all=True, append_images=others)
    for split, slices in (("train", range(20)), ("val", range(20, 30))):
        dataset = open_dataset(f"isbi2012:{tmp_path}", split)
        assert (dataset.task, dataset.classes) == (Task.BINARY, ("membrane",))
        assert len(dataset) == len(slices)
        for index, page in enumerate(slices):
            sample = dataset[index]
            assert sample.name == str(page)
            np.testing.assert_array_equal(sample.image, np.repeat(volume[page, ..., None], 3, 2))
            np.testing.assert_array_equal(sample.label, cells[page] == 0)
    Image.fromarray(cells[0]).save(tmp_path / "train-labels.tif")
    with pytest.raises(DataError, match=r"train-labels\.tif cannot be read"):
        open_dataset(f"isbi2012:{tmp_path}", "val")[0]


@pytest.mark.parametrize("name", [n for n in DATASETS if not n.startswith("synthetic")])
def test_a_folder_of_something_else_is_a_data_error_that_says_what_is_there(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as caught:
        open_dataset(f"{name}:{tmp_path}", "train")
    assert str(tmp_path) in str(caught.value)
    assert "Found: holiday/, notes.txt in" in str(caught.value)
