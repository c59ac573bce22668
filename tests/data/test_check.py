"""`check_data` counts right and finds what was broken on purpose, and only that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.errors import ArtifactError, DataError, UnknownNameError
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.check import check_data
from segdeploy.data.findings import DataCheck, Kind
from segdeploy.data.sample import Dataset, NoSplitError, Sample
from segdeploy.data.sheet import write_sheets

CLASSES = ("background", "disc", "box", "triangle", "bar")
COUNTS = {"train": 6, "val": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clean folder data set of ten different scenes."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for split, count in COUNTS.items():
        scenes = open_dataset("synthetic:32x40:40", split)
        for index in range(count):
            for kind, pixels in (("images", scenes[index].image), ("labels", scenes[index].label)):
                _save(tmp_path / kind / split / f"{index}.png", pixels)
    return tmp_path


def _save(path: Path, pixels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _kinds(check: DataCheck) -> list[tuple[Kind, str]]:
    return [(f.kind, f.split) for f in (*check.problems, *check.warnings)]


def _slow_pixels(root: Path, kind: str, split: str) -> NDArray[np.uint8]:
    found = [np.asarray(Image.open(p)) for p in sorted((root / kind / split).iterdir())]
    return np.concatenate([pixels.reshape(32 * 40, -1) for pixels in found])


def test_counts_shares_and_moments_equal_those_of_all_pixels_at_once(root: Path) -> None:
    check = check_data(f"folder:{root}")
    assert check
    assert check.problems == []
    assert [facts.split for facts in check.splits] == ["train", "val"]
    for facts in check.splits:
        labels = _slow_pixels(root, "labels", facts.split).ravel()
        colours = _slow_pixels(root, "images", facts.split) / 255
        count = COUNTS[facts.split]
        assert (facts.num_images, facts.num_read) == (count, count)
        assert (facts.heights, facts.widths) == ((32, 32), (40, 40))
        np.testing.assert_allclose(facts.mean or [], colours.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(facts.std or [], colours.std(axis=0), rtol=1e-9)
        assert facts.ignored_share == pytest.approx((labels == 255).mean())
        counted = labels[labels != 255]
        for k, name in enumerate(CLASSES):
            assert facts.class_share[name] == pytest.approx((counted == k).mean())
            images = (labels.reshape(count, -1) == k).any(axis=1).sum()
            assert facts.class_images[k] == images


def test_camvid_is_counted_as_its_masks_are_stored(shared_data: Path) -> None:
    facts = check_data(f"camvid:{shared_data / 'camvid'}", ["val"]).splits[0]
    assert facts.num_read == 101
    assert sum(facts.class_share[name] or 0 for name in facts.classes) == pytest.approx(1)
    # All of the 101 masks at once, by Pillow alone.
    masks = sorted((shared_data / "camvid" / "valannot").glob("*.png"))
    counts = np.bincount(np.concatenate([np.asarray(Image.open(p)).ravel() for p in masks]))
    np.testing.assert_array_equal(facts.class_pixels, counts[:11])
    assert facts.ignored_pixels == counts[11]


def test_sizes_are_the_smallest_and_the_largest(root: Path) -> None:
    for split, size in (("train", (20, 90)), ("train", (50, 10))):
        name = f"{size[0]}.png"
        _save(root / "images" / split / name, np.ones((*size, 3), np.uint8))
        _save(root / "labels" / split / name, np.ones(size, np.uint8))
    facts = check_data(f"folder:{root}").splits[0]
    assert (facts.heights, facts.widths) == ((20, 50), (10, 90))


def test_a_damaged_image_wrong_ids_and_a_wrong_size_are_problems_of_their_kind(
    root: Path,
) -> None:
    image = root / "images" / "train" / "1.png"
    image.write_bytes(image.read_bytes()[:300])
    _save(root / "labels" / "train" / "2.png", np.full((32, 40), 5, np.uint8))
    _save(root / "labels" / "val" / "3.png", np.zeros((30, 40), np.uint8))
    check = check_data(f"folder:{root}")
    assert not check
    assert [(f.kind, f.split, f.index) for f in check.problems] == [
        (Kind.DAMAGED, "train", 1), (Kind.LABEL_IDS, "train", 2), (Kind.SIZE, "val", 3),
    ]  # fmt: skip
    for finding, name in zip(check.problems, ("1.png", "2.png", "3.png"), strict=True):
        assert name in finding.message
    assert [facts.num_read for facts in check.splits] == [4, 3]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_the_same_pixels_in_two_splits_are_a_leak_whatever_the_format(
    root: Path, suffix: str
) -> None:
    with Image.open(root / "images" / "train" / "4.png") as picture:
        picture.save(root / "images" / "val" / f"9.{suffix}")
    shutil.copy(root / "labels" / "train" / "4.png", root / "labels" / "val" / "9.png")
    check = check_data(f"folder:{root}")
    assert [(f.kind, f.split, f.index) for f in check.problems] == [(Kind.LEAK, "val", 4)]
    assert check.problems[0].message == "val/9 has the same pixels as train/4."


def test_a_copy_inside_a_split_is_a_warning_and_another_label_is_said(root: Path) -> None:
    shutil.copy(root / "images" / "train" / "0.png", root / "images" / "train" / "5.png")
    check = check_data(f"folder:{root}", ["train"])
    assert check
    assert _kinds(check) == [(Kind.DUPLICATE, "train")]
    assert check.warnings[0].message == (
        "train/5 has the same pixels as train/0, but another label."
    )


def test_one_changed_pixel_is_the_same_picture_but_another_shape_is_not(root: Path) -> None:
    pixels = np.asarray(Image.open(root / "images" / "train" / "0.png")).copy()
    label = np.asarray(Image.open(root / "labels" / "train" / "0.png"))
    _save(root / "images" / "val" / "8.png", pixels.reshape(40, 32, 3))
    _save(root / "labels" / "val" / "8.png", label.reshape(40, 32))
    assert check_data(f"folder:{root}").findings == ()
    pixels[7, 7, 1] ^= 1
    _save(root / "images" / "val" / "9.png", pixels)
    _save(root / "labels" / "val" / "9.png", label)
    found = check_data(f"folder:{root}").findings
    assert [(f.kind, f.split, f.index) for f in found] == [(Kind.LEAK, "val", 5)]


def test_absent_and_rare_classes_are_warnings(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join((*CLASSES, "unicorn", "dragon")))
    label = root / "labels" / "val" / "0.png"
    ids = np.asarray(Image.open(label)).copy()
    ids[5, 5] = 6
    _save(label, ids)
    check = check_data(f"folder:{root}")
    assert check
    assert _kinds(check) == [
        (Kind.ABSENT_CLASS, "train"), (Kind.ABSENT_CLASS, "val"), (Kind.RARE_CLASS, "val"),
    ]  # fmt: skip
    texts = [finding.message for finding in check.warnings]
    assert "2 of 7 classes have no pixel in train: unicorn, dragon" in texts[0]
    assert "1 of 7 classes have no pixel in val: unicorn." in texts[1]
    assert "dragon (0.0" in texts[2]


def test_a_missing_split_is_a_warning_and_a_broken_one_a_problem(root: Path) -> None:
    (root / "labels" / "train" / "3.png").unlink()
    check = check_data(f"folder:{root}")
    assert _kinds(check) == [(Kind.SPLIT, "train")]
    assert "3.png" in check.problems[0].message
    shutil.rmtree(root / "images" / "train")
    check = check_data(f"folder:{root}")
    assert check
    assert _kinds(check) == [(Kind.NO_SPLIT, "train")]
    assert [facts.split for facts in check.splits] == ["val"]
    with pytest.raises(NoSplitError):
        check_data(f"folder:{root}", ["train"])


def test_a_third_split_is_looked_at_too(root: Path) -> None:
    for kind in ("images", "labels"):
        shutil.copytree(root / kind / "val", root / kind / "test")
    check = check_data(f"folder:{root}")
    assert [facts.split for facts in check.splits] == ["train", "val", "test"]
    assert _kinds(check) == [(Kind.LEAK, "test")] * COUNTS["val"]


def test_a_wrong_root_or_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes"):
        check_data(f"folder:{tmp_path}")
    with pytest.raises(UnknownNameError):
        check_data("camvit")


def test_a_split_without_a_readable_image_has_no_numbers(root: Path) -> None:
    for image in (root / "images" / "val").iterdir():
        image.write_bytes(b"")
    facts = check_data(f"folder:{root}").splits[1]
    assert (facts.num_read, facts.heights, facts.mean, facts.std) == (0, None, None, None)
    assert facts.ignored_share is None
    assert set(facts.class_share.values()) == {None}


def test_a_binary_task_counts_background_and_class() -> None:
    check = check_data("synthetic_binary:32x32:8")
    scenes = open_dataset("synthetic_binary:32x32:8", "train")
    labels = np.stack([scenes[i].label for i in range(8)])
    assert check.splits[0].classes == ("background", "object")
    assert check.splits[0].class_pixels.tolist() == [(labels == 0).sum(), (labels == 1).sum()]
    assert check.task == "binary"


def test_the_document_is_json_and_progress_ends_at_the_total(root: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check = check_data(f"folder:{root}", progress=lambda *now: told.append(now))
    assert told == [(s, i + 1, n) for s, n in COUNTS.items() for i in range(n)]
    document = json.loads(json.dumps(check.to_dict(), allow_nan=False))
    assert document["passed"] is True
    assert document["splits"][1]["class_images"].keys() == set(CLASSES)
    assert document["splits"][0]["heights"] == [32, 32]


@dataclass(frozen=True)
class _Plugin:
    """A foreign data set that gives what ours refuse."""

    labels: Sequence[NDArray[np.uint8]]
    name: str = "plugin/val"
    task: Task = Task.MULTICLASS
    classes: tuple[str, ...] = ("a", "b")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = np.full((4, 4, 3), index, np.uint8)
        return Sample(str(index), image, self.labels[index])


def test_a_plug_in_that_does_not_look_at_its_labels_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, high, small = np.eye(4, dtype=np.uint8), np.full((4, 4), 7, np.uint8), np.eye(3)

    def open_plugin(_data: str, _split: str) -> Dataset:
        return _Plugin([good, high, small.astype(np.uint8), good])

    monkeypatch.setattr("segdeploy.data.check.open_dataset", open_plugin)
    check = check_data("plugin", ["val"])
    assert [(f.kind, f.index) for f in check.problems] == [(Kind.LABEL_IDS, 1), (Kind.SIZE, 2)]
    assert "[7]" in check.problems[0].message


def test_sheets_show_samples_and_findings_and_are_whole_files(root: Path, tmp_path: Path) -> None:
    clean = check_data(f"folder:{root}")
    before = [np.asarray(Image.open(p)) for p in write_sheets(clean, tmp_path / "deep" / "clean")]
    (root / "images" / "val" / "1.png").write_bytes(b"")
    shutil.copy(root / "images" / "train" / "0.png", root / "images" / "val" / "2.png")
    broken = check_data(f"folder:{root}")
    files = write_sheets(broken, tmp_path / "out")
    assert [file.name for file in files] == ["train.png", "val.png"]
    after = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(before[0], after[0])

    def reds(picture: NDArray[np.uint8]) -> int:
        return int((picture == (200, 20, 50)).all(axis=-1).sum())

    assert reds(before[1]) == 0
    assert reds(after[1]) > 100
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".png"] == []


def test_sheets_of_a_split_that_cannot_be_read_hold_the_words(root: Path, tmp_path: Path) -> None:
    for image in (root / "images" / "val").iterdir():
        image.write_bytes(b"")
    check = check_data(f"folder:{root}", ["val"])
    (file,) = write_sheets(check, tmp_path / "out")
    with Image.open(file) as picture:
        assert min(picture.size) > 200


def test_a_file_in_the_way_of_the_pictures_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ArtifactError, match="out"):
        write_sheets(check_data(f"folder:{root}"), tmp_path / "out")
