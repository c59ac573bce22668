"""VOC, SBD and PASCAL-Context, against torchvision's readers where it has one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from segdeploy.core.errors import BackendUnavailableError, DataError
from segdeploy.core.task import Task
from segdeploy.data import Dataset, open_dataset
from segdeploy.data.pascal_context import CLASSES as CONTEXT
from segdeploy.data.sample import LabelIdError, LabelSizeError, NoSplitError
from segdeploy.data.voc import CLASSES
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision.datasets import SBDataset, VOCSegmentation  # noqa: E402
from torchvision.models.segmentation import FCN_ResNet50_Weights  # noqa: E402

SIZE = (6, 8)
NAMES = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
ALL = [*NAMES["train"], *NAMES["val"]]


def _photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _ids(seed: int, values: Any) -> NDArray[np.uint8]:
    drawn = np.random.default_rng(seed).choice(np.asarray(values), SIZE)
    return drawn.astype(np.uint8)


def _palette_png(path: Path, ids: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids).convert("P")
    picture.putdata(ids.ravel().tolist())
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(path)


def _list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def _make_voc(top: Path, masks: str = "SegmentationClass") -> Path:
    for seed, name in enumerate(ALL):
        _photo(top / "JPEGImages" / f"{name}.jpg", seed)
        _palette_png(top / masks / f"{name}.png", _ids(seed, [*range(21), 255]))
    for split, names in (*NAMES.items(), ("trainval", ALL)):
        _list(top / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return top


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """The folder VOC2012."""
    return _make_voc(tmp_path / "VOCdevkit" / "VOC2012")


def _assert_same(ours: Dataset, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for index, (image, target) in enumerate(theirs):
        np.testing.assert_array_equal(ours[index].image, np.asarray(image))
        np.testing.assert_array_equal(ours[index].label, np.asarray(target))


def test_the_classes_are_those_of_torchvisions_weights() -> None:
    theirs = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert ("background", *theirs[1:]) == CLASSES


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_voc_equals_torchvision(tmp_path: Path, voc: Path, split: str) -> None:
    ours = open_dataset(f"voc:{voc}", split)
    assert (ours.task, ours.name) == (Task.MULTICLASS, f"voc2012/{split}")
    _assert_same(ours, VOCSegmentation(tmp_path, "2012", split))


def test_voc_is_found_below_the_devkit_and_2012_before_2007(tmp_path: Path, voc: Path) -> None:
    older = _make_voc(voc.parent / "VOC2007")
    _list(older / "ImageSets" / "Segmentation" / "test.txt", NAMES["val"])
    for root in (tmp_path, voc.parent, voc):
        assert open_dataset(f"voc:{root}").name == "voc2012/val"
    test = open_dataset(f"voc:{older}", "test")
    assert test.name == "voc2007/test"
    _assert_same(test, VOCSegmentation(tmp_path, "2007", "val"))


def test_an_absent_list_names_those_that_are_there(voc: Path) -> None:
    with pytest.raises(NoSplitError, match=r"no list .*test\.txt") as caught:
        open_dataset(f"voc:{voc}", "test")
    assert "train, trainval, val" in caught.value.hint


def test_an_unlabelled_split_is_no_split_but_one_lost_label_is_counted(voc: Path) -> None:
    _list(voc / "ImageSets" / "Segmentation" / "test.txt", ["2008_000001", "2008_000002"])
    with pytest.raises(NoSplitError, match="None of the 2 images has a label"):
        open_dataset(f"voc:{voc}", "test")
    (voc / "SegmentationClass" / "2007_000039.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 labels are missing, e\.g\. .*2007_000039\.png"):
        open_dataset(f"voc:{voc}", "train")
    (voc / "JPEGImages" / "2007_000033.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images are missing, e\.g\. .*2007_000033\.jpg"):
        open_dataset(f"voc:{voc}", "val")


def test_a_partial_voc_says_what_was_looked_for_and_found(voc: Path) -> None:
    shutil.rmtree(voc / "SegmentationClass")
    with pytest.raises(DataError) as caught:
        open_dataset(f"voc:{voc}")
    said = str(caught.value)
    assert f"there is no {voc / 'SegmentationClass'}." in said
    assert "Found: ImageSets/, JPEGImages/ in" in said
    assert "VOCdevkit/VOC2012" in caught.value.hint


def test_an_empty_list_is_a_data_error(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n \n")
    with pytest.raises(DataError, match="lists no image"):
        open_dataset(f"voc:{voc}")


def test_a_list_may_have_a_bom_windows_ends_and_blank_lines(voc: Path) -> None:
    file = voc / "ImageSets" / "Segmentation" / "val.txt"
    file.write_bytes(b"\xef\xbb\xbf2007_000032\r\n\r\n2007_000039\r\n\r\n")
    dataset = open_dataset(f"voc:{voc}")
    assert [dataset[i].name for i in range(len(dataset))] == NAMES["train"]


def test_a_listed_name_may_have_a_dot(voc: Path) -> None:
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        file = voc / folder / f"2007_000033.{suffix}"
        file.rename(file.with_name(f"2007_000033.left.{suffix}"))
    _list(voc / "ImageSets" / "Segmentation" / "val.txt", ["2007_000033.left"])
    assert open_dataset(f"voc:{voc}")[0].name == "2007_000033.left"


def test_ids_beyond_the_21_are_named(voc: Path) -> None:
    _palette_png(voc / "SegmentationClass" / "2007_000033.png", _ids(0, [21]))
    with pytest.raises(LabelIdError, match=r"2007_000033\.png holds label ids \[21\]"):
        open_dataset(f"voc:{voc}")[0]


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    """The folder benchmark_RELEASE/dataset; a .mat also holds boundaries, as the real ones do."""
    top = tmp_path / "benchmark_RELEASE" / "dataset"
    (top / "cls").mkdir(parents=True)
    for seed, name in enumerate(ALL):
        _photo(top / "img" / f"{name}.jpg", seed)
        mask = {"Segmentation": _ids(seed, range(21)), "Boundaries": np.zeros((20, 1))}
        savemat(top / "cls" / f"{name}.mat", {"GTcls": mask})
    for split, names in NAMES.items():
        _list(top / f"{split}.txt", names)
    return top


@pytest.mark.parametrize("split", ["train", "val"])
def test_sbd_equals_torchvision(tmp_path: Path, sbd: Path, split: str) -> None:
    theirs = SBDataset(sbd, split, mode="segmentation")
    for root in (tmp_path, sbd.parent, sbd):
        _assert_same(open_dataset(f"voc_aug:{root}", split), theirs)


@pytest.mark.parametrize("listed", ["trainaug", "train_aug"])
def test_voc_with_aug_masks_trains_on_trainaug_and_validates_on_val(
    tmp_path: Path, listed: str
) -> None:
    top = _make_voc(tmp_path / "VOC2012", "SegmentationClassAug")
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in NAMES["train"]]
    _list(top / "ImageSets" / "Segmentation" / f"{listed}.txt", lines)
    for split, names in NAMES.items():
        ours = open_dataset(f"voc_aug:{tmp_path}", split)
        assert [ours[i].name for i in range(len(ours))] == names
        for index, name in enumerate(names):
            with Image.open(top / "SegmentationClassAug" / f"{name}.png") as picture:
                np.testing.assert_array_equal(ours[index].label, np.asarray(picture))
    shutil.rmtree(top / "SegmentationClassAug")
    with pytest.raises(DataError, match="is not SBD or VOC2012 with SegmentationClassAug"):
        open_dataset(f"voc_aug:{tmp_path}", "train")


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file", bytes(400)])
def test_a_damaged_mat_file_is_named(sbd: Path, content: bytes) -> None:
    (sbd / "cls" / "2007_000033.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"2007_000033\.mat cannot be read") as caught:
        open_dataset(f"voc_aug:{sbd}")[0]
    assert "GTcls.Segmentation" in caught.value.hint


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"GTinst": np.zeros(SIZE, np.uint8)}, "cannot be read: KeyError"),
        ({"GTcls": {"Segmentation": np.zeros(SIZE)}}, "no label mask, but float64"),
        ({"GTcls": {"Segmentation": "text"}}, "no label mask"),
    ],
)
def test_a_mat_file_without_the_mask_is_named(sbd: Path, stored: Any, said: str) -> None:
    savemat(sbd / "cls" / "2007_000033.mat", stored)
    with pytest.raises(DataError, match=said):
        open_dataset(f"voc_aug:{sbd}")[0]


def test_a_mat_mask_of_another_size_is_named(sbd: Path) -> None:
    stored = {"GTcls": {"Segmentation": np.zeros((4, 4), np.uint8)}}
    savemat(sbd / "cls" / "2007_000033.mat", stored)
    with pytest.raises(LabelSizeError, match=r"2007_000033\.mat is 4x4, its image .* 8x6"):
        open_dataset(f"voc_aug:{sbd}")[0]


def test_without_scipy_the_install_line_is_said(sbd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(f"voc_aug:{sbd}")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError) as caught:
        dataset[0]
    assert "pip install" in caught.value.hint


def test_the_context_classes_are_59_in_the_order_of_their_459_ids(tmp_path: Path) -> None:
    assert len(CONTEXT) == 59
    assert list(CONTEXT) == sorted(CONTEXT)  # The 459 ids are alphabetical, too.
    top = tmp_path / "VOC2010"
    _photo(top / "JPEGImages" / "2008_000002.jpg", 0)
    _list(top / "ImageSets" / "Main" / "val.txt", ["2008_000002"])
    (top / "trainval").mkdir()
    ids = np.zeros(SIZE, np.uint16)
    # 427 tvmonitor, 284 person, 2 aeroplane, 458 wood (labels.txt of the authors); 1 accordion.
    ids[0], ids[1], ids[2], ids[3], ids[4], ids[5] = 427, 284, 2, 458, 1, 459
    savemat(top / "trainval" / "2008_000002.mat", {"LabelMap": ids})
    label = open_dataset(f"pascal_context:{tmp_path}")[0].label
    assert label.dtype == np.uint8
    named = [CONTEXT.index(n) for n in ("tvmonitor", "person", "aeroplane", "wood")]
    assert label[:, 0].tolist() == [*named, 255, 255]
    ids[0] = 460
    savemat(top / "trainval" / "2008_000002.mat", {"LabelMap": ids})
    with pytest.raises(LabelIdError, match=r"\[460\]; those of pascal_context/val are 0 to 459"):
        open_dataset(f"pascal_context:{tmp_path}")[0]


def test_context_as_png_is_shifted_by_one(tmp_path: Path) -> None:
    top = tmp_path / "VOCdevkit" / "VOC2010"
    _photo(top / "JPEGImages" / "a.jpg", 0)
    _list(top / "ImageSets" / "SegmentationContext" / "train.txt", ["a"])
    stored = _ids(1, range(60))
    _palette_png(top / "SegmentationClassContext" / "a.png", stored)
    label = open_dataset(f"pascal_context:{tmp_path}", "train")[0].label
    np.testing.assert_array_equal(label, np.where(stored == 0, 255, stored.astype(int) - 1))
    _palette_png(top / "SegmentationClassContext" / "a.png", np.full(SIZE, 60, np.uint8))
    with pytest.raises(LabelIdError, match=r"\[60\]"):
        open_dataset(f"pascal_context:{tmp_path}", "train")[0]
