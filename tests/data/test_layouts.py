"""CamVid and folder data sets: right pairs, right ids, and every inconsistency named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeploy.core.errors import DataError, UnknownNameError
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.folder import open_folder


def _image(path: Path, size: tuple[int, int] = (6, 8), level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (level, level, level)).save(path)


def _label(path: Path, ids: Any, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(ids), size).copy().astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training pairs and one validation pair of three classes."""
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    for split, names in (("train", "ab"), ("val", "c")):
        for level, name in enumerate(names):
            _image(tmp_path / "images" / split / f"{name}.jpg", level=level * 100)
            _label(tmp_path / "labels" / split / f"{name}.png", level)
    return tmp_path


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_camvid_has_its_counts_sizes_and_void(shared_data: Path, split: str, count: int) -> None:
    dataset = open_dataset(f"camvid:{shared_data / 'camvid'}", split)
    assert (len(dataset), len(dataset.classes), dataset.task) == (count, 11, Task.MULTICLASS)
    assert dataset.name == f"camvid/{split}"
    for index in (0, count // 2, count - 1):
        sample = dataset[index]
        assert sample.image.shape == (360, 480, 3)
        assert sample.label.shape == (360, 480)
        folder = shared_data / "camvid" / f"{split}annot"
        with Image.open(folder / f"{sample.name}.png") as picture:
            stored = np.asarray(picture)
        assert stored.max() == 11
        np.testing.assert_array_equal(sample.label, np.where(stored == 11, 255, stored))


def test_camvid_pixel_shares_are_the_published_ones(shared_data: Path) -> None:
    dataset = open_dataset(f"camvid:{shared_data / 'camvid'}", "train")
    counts = np.zeros(256, np.int64)
    for index in range(0, len(dataset), 20):
        counts += np.bincount(dataset[index].label.ravel(), minlength=256)
    share = 100 * counts / counts.sum()
    for name, expected in (("Sky", 16.8), ("Building", 23.3), ("Road", 31.7)):  # data README
        assert share[dataset.classes.index(name)] == pytest.approx(expected, abs=6)
    assert share[255] == pytest.approx(3.9, abs=2)
    assert counts[11:255].sum() == 0


@pytest.mark.parametrize("spec", ["camvid", "camvid:", "camvid:{}/lost", "camvid:{}"])
def test_a_wrong_camvid_root_is_a_data_error_with_the_layout(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(spec.format(tmp_path), "val")
    assert caught.value.hint


def test_camvid_with_one_class_too_many_names_the_file(tmp_path: Path) -> None:
    _image(tmp_path / "val" / "a.png")
    _label(tmp_path / "valannot" / "a.png", 12)
    with pytest.raises(DataError, match=r"a\.png holds label ids \[12\]"):
        open_dataset(f"camvid:{tmp_path}", "val")[0]
    for split in ("train", "", "nonsense"):
        with pytest.raises(DataError):
            open_dataset(f"camvid:{tmp_path}", split)


def test_an_unknown_data_set_answers_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        open_dataset("camvit:x")
    assert "camvid" in caught.value.hint


@pytest.mark.parametrize("spec", ["folder", "folder:"])
def test_a_folder_needs_a_root(spec: str) -> None:
    with pytest.raises(DataError, match="needs a root") as caught:
        open_dataset(spec)
    assert "folder:" in caught.value.hint


def test_a_split_folder_pairs_by_name(root: Path) -> None:
    train, val = open_dataset(f"folder:{root}", "train"), open_dataset(f"folder:{root}", "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == ("road", "car", "sky")
    assert train.task is Task.MULTICLASS
    assert [train[i].name for i in range(2)] == ["a", "b"]
    for index in range(2):
        assert (train[index].label == index).all()
        assert abs(int(train[index].image[0, 0, 0]) - 100 * index) <= 2
    with pytest.raises(IndexError):
        train[2]


def test_a_root_may_contain_a_colon_and_be_dot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = root.parent / "a:b"
    root.rename(moved)
    assert len(open_dataset(f"folder:{moved}", "train")) == 2
    monkeypatch.chdir(moved)
    assert open_dataset("folder:.", "train").name == "a:b/train"


def test_a_flat_folder_is_split_by_name_only(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb")
    for index in range(11):
        _image(tmp_path / "images" / f"{index:02d}.png")
        _label(tmp_path / "labels" / f"{index:02d}.png", 0)
    (tmp_path / "images" / ".cache").mkdir()
    train, val = (open_folder(str(tmp_path), split) for split in ("train", "val"))
    names = [{d[i].name for i in range(len(d))} for d in (train, val)]
    assert names[1] == {"00", "05", "10"}
    assert names[0] == {f"{i:02d}" for i in range(11)} - names[1]
    for split in ("test", ""):
        with pytest.raises(DataError, match="train and val"):
            open_folder(str(tmp_path), split)


def test_a_flat_folder_of_one_image_has_no_training_split(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb")
    _image(tmp_path / "images" / "a.png")
    _label(tmp_path / "labels" / "a.png", 0)
    assert len(open_folder(str(tmp_path), "val")) == 1
    with pytest.raises(DataError, match="empty"):
        open_folder(str(tmp_path), "train")


def test_classes_may_have_a_bom_windows_ends_and_blank_lines(root: Path) -> None:
    (root / "classes.txt").write_bytes("\ufeffStraße\r\n\r\n  car \r\nsky\r\n".encode())
    assert open_dataset(f"folder:{root}").classes == ("Straße", "car", "sky")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "unique class names"), (b" \n\n", "unique"), (b"a\nb\na\n", "unique"),
     (b"\xff\xfea\0\n\0", "not readable text")],
)  # fmt: skip
def test_a_bad_classes_file_is_named(root: Path, content: bytes, said: str) -> None:
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"classes\.txt") as caught:
        open_dataset(f"folder:{root}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("classes.txt", "no classes file"),
        ("images", "no folder images"),
        ("labels", "no folder labels"),
        ("labels/val", "no folder"),
        ("images/val", "no split 'val', only"),
        ("images/val/c.jpg", "no images"),
        ("labels/val/c.png", "no label in"),
    ],
)
def test_what_is_missing_is_named(root: Path, lost: str, said: str) -> None:
    (root / lost).rename(root / "elsewhere")
    with pytest.raises(DataError, match=said):
        open_dataset(f"folder:{root}", "val")


def test_a_split_without_images_says_what_is_there(root: Path) -> None:
    (root / "images" / "val" / "c.jpg").rename(root / "images" / "val" / "c.dng")
    (root / "images" / "val" / "berlin").mkdir()
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{root}", "val")
    assert "Found: berlin/, c.dng in" in caught.value.hint


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_of_one_stem_are_refused_not_guessed(root: Path, folder: str) -> None:
    if folder == "images":
        _image(root / folder / "train" / "a.tif")
    else:
        _label(root / folder / "train" / "a.tif", 0)
    with pytest.raises(DataError, match=r"holds both a\.\w+ and a\.tif"):
        open_dataset(f"folder:{root}", "train")


def test_a_label_without_an_image_does_no_harm(root: Path) -> None:
    _label(root / "labels" / "val" / "zzz.png", 0)
    assert len(open_dataset(f"folder:{root}", "val")) == 1


def test_a_label_of_another_size_names_both_files(root: Path) -> None:
    _label(root / "labels" / "val" / "c.png", 0, (8, 6))
    with pytest.raises(DataError, match=r"c\.png is 6x8, its image .*c\.jpg 8x6"):
        open_dataset(f"folder:{root}", "val")[0]


@pytest.mark.parametrize("wrong", [3, 11, 254])
def test_ids_beyond_the_classes_are_named(root: Path, wrong: int) -> None:
    _label(root / "labels" / "val" / "c.png", [0, 1, 2, 255, wrong, 0, 0, 0])
    with pytest.raises(DataError, match=rf"c\.png holds label ids \[{wrong}\]; with 3 classes"):
        open_dataset(f"folder:{root}", "val")[0]


def test_255_is_ignored_and_kept(root: Path) -> None:
    _label(root / "labels" / "val" / "c.png", [0, 1, 2, 255, 0, 0, 0, 0])
    assert 255 in open_dataset(f"folder:{root}", "val")[0].label


def test_from_256_classes_on_255_is_a_class_and_65535_is_ignored(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(f"class {k}" for k in range(300)))
    ids = np.full((6, 8), 255, np.uint16)
    ids[0], ids[1] = 299, 65535
    Image.fromarray(ids).save(root / "labels" / "val" / "c.png")
    dataset = open_dataset(f"folder:{root}", "val")
    np.testing.assert_array_equal(dataset[0].label, ids)
    ids[2] = 300
    Image.fromarray(ids).save(root / "labels" / "val" / "c.png")
    with pytest.raises(DataError, match=r"\[300\]"):
        dataset[0]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ([0, 255, 0, 255], [0, 1, 0, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 255, 0], [0, 1, 255, 0]),
    ],
)
def test_binary_masks_may_be_stored_as_0_1_or_0_255(
    root: Path, stored: list[int], expected: list[int]
) -> None:
    (root / "classes.txt").write_text("cell\n")
    _label(root / "labels" / "train" / "b.png", 0)  # No other mask says how the class is stored.
    _label(root / "labels" / "val" / "c.png", stored * 2)
    dataset = open_dataset(f"folder:{root}", "val")
    assert (dataset.task, dataset.classes) == (Task.BINARY, ("cell",))
    assert dataset[0].label[0].tolist() == expected * 2


def test_255_stays_ignored_where_another_binary_mask_holds_a_1(root: Path) -> None:
    (root / "classes.txt").write_text("cell\n")
    _label(root / "labels" / "val" / "c.png", [0, 255, 0, 0, 0, 0, 0, 255])
    assert open_dataset(f"folder:{root}", "val")[0].label[0].tolist() == [0, 255] + [0] * 5 + [255]
    _label(root / "labels" / "val" / "c.png", 255)
    assert set(open_dataset(f"folder:{root}", "val")[0].label.ravel()) == {255}


def test_a_damaged_mask_elsewhere_does_not_hide_how_the_class_is_stored(root: Path) -> None:
    (root / "classes.txt").write_text("cell\n")
    (root / "labels" / "train" / "a.png").write_bytes(b"")
    _label(root / "labels" / "val" / "c.png", [0, 255, 0, 0, 0, 0, 0, 255])
    assert 1 not in open_dataset(f"folder:{root}", "val")[0].label


def test_a_mask_that_contradicts_how_the_class_was_found_stored_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "classes.txt").write_text("cell\n")
    _label(root / "labels" / "train" / "a.png", [0, 255, 0, 0, 0, 0, 0, 255])
    monkeypatch.setattr("segdeploy.data.folder._MASKS_LOOKED_AT", 1)
    dataset = open_dataset(f"folder:{root}", "train")
    assert set(dataset[0].label.ravel()) == {0, 1}
    with pytest.raises(DataError, match=r"b\.png holds the id 1"):
        dataset[1]


def test_a_binary_mask_with_other_ids_is_refused(root: Path) -> None:
    (root / "classes.txt").write_text("cell\n")
    _label(root / "labels" / "val" / "c.png", [0, 2, 255, 0, 0, 0, 0, 0])
    with pytest.raises(DataError, match=r"\[2\]; with 2 classes"):
        open_dataset(f"folder:{root}", "val")[0]


def test_isbi_masks_of_0_and_255_read_as_binary(shared_data: Path, tmp_path: Path) -> None:
    masks = sorted((shared_data / "isbi2012").rglob("*label*/*.png"))[:2]
    if not masks:
        pytest.skip("isbi2012 labels are not in the real data folder")
    (tmp_path / "classes.txt").write_text("membrane\n")
    for mask in masks:
        with Image.open(mask) as picture:
            stored = np.asarray(picture)
            _image(tmp_path / "images" / "val" / mask.name, (stored.shape[0], stored.shape[1]))
            _label(tmp_path / "labels" / "val" / mask.name, stored, stored.shape)
    dataset = open_dataset(f"folder:{tmp_path}", "val")
    for index in range(len(dataset)):
        assert set(np.unique(dataset[index].label)) == {0, 1}


def test_a_damaged_image_is_named_when_it_is_read(root: Path) -> None:
    (root / "images" / "val" / "c.jpg").write_bytes(b"")
    dataset = open_dataset(f"folder:{root}", "val")
    with pytest.raises(DataError, match=r"c\.jpg is empty"):
        dataset[0]
