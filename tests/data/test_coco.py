"""COCO's label maps against pycocotools in a slow loop, and against torchvision's reader."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segdeploy.core.errors import BackendUnavailableError, DataError
from segdeploy.data import open_dataset
from segdeploy.data.coco import CLASSES, THINGS
from segdeploy.data.coco_stuff import CLASSES as STUFF_CLASSES
from segdeploy.data.instances import InstanceDataset
from segdeploy.data.sample import LabelIdError, LabelSizeError, NoSplitError
from segdeploy.data.voc import CLASSES as VOC_CLASSES
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision.datasets import CocoDetection  # noqa: E402
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights  # noqa: E402

# COCO's category of each VOC class, in VOC's order: torchvision's references/segmentation.
VOC_IDS = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)


def _slow_label(coco: COCO, image: int, ids: tuple[int, ...], is_voc: bool) -> NDArray[np.uint8]:
    size = coco.imgs[image]["height"], coco.imgs[image]["width"]
    label, times, crowd = np.zeros(size, np.uint8), np.zeros(size, int), np.zeros(size, bool)
    for annotation in sorted(coco.imgToAnns[image], key=lambda a: a["area"], reverse=True):
        if annotation["category_id"] not in ids:
            continue
        inside = coco.annToMask(annotation) == 1
        if annotation["iscrowd"]:
            crowd |= inside
            continue
        label[inside] = 1 + ids.index(annotation["category_id"])
        times += inside
    label[crowd & (times == 0)] = 255
    if is_voc:
        label[times >= 2] = 255
    return label


def _coco(root: Path, split: str) -> tuple[COCO, Path]:
    file = root / "annotations" / f"instances_{split}2017.json"
    return COCO(str(file)), file


def test_the_80_classes_have_the_ids_of_torchvisions_weights() -> None:
    theirs = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert {k: n for k, n in enumerate(theirs) if n != "N/A" and k} == THINGS
    assert len(CLASSES) == 81


@pytest.mark.parametrize(("split", "count"), [("train", 32), ("val", 6)])
def test_coco_equals_pycocotools_and_torchvision(shared_data: Path, split: str, count: int) -> None:
    root = shared_data / "tinycoco"
    ours = open_dataset(f"coco:{root}", split)
    coco, file = _coco(root, split)
    theirs = CocoDetection(root / "images" / f"{split}2017", str(file))
    assert (len(ours), ours.name, ours.classes) == (count, f"coco/{split}", CLASSES)
    crowds = 0
    for index, image in enumerate(sorted(coco.imgs)):
        sample = ours[index]
        np.testing.assert_array_equal(
            sample.label, _slow_label(coco, image, tuple(THINGS), is_voc=False)
        )
        np.testing.assert_array_equal(sample.image, np.asarray(theirs[index][0]))
        crowds += int((sample.label == 255).any())
    assert crowds


def test_coco_voc_equals_pycocotools_and_leaves_out_nearly_empty_training_images(
    shared_data: Path,
) -> None:
    root = shared_data / "tinycoco"
    for split in ("train", "val"):
        ours = open_dataset(f"coco_voc:{root}", split)
        coco, _ = _coco(root, split)
        areas = {
            image: sum(a["area"] for a in coco.imgToAnns[image] if a["category_id"] in VOC_IDS)
            for image in sorted(coco.imgs)
        }
        kept = [image for image in areas if split == "val" or areas[image] > 1000]
        assert [int(ours[i].name) for i in range(len(ours))] == kept
        assert split == "val" or 0 < len(kept) < len(areas)
        for index, image in enumerate(kept):
            expected = _slow_label(coco, image, VOC_IDS, is_voc=True)
            np.testing.assert_array_equal(ours[index].label, expected)
    assert ours.classes == VOC_CLASSES


def test_a_coco_voc_without_a_training_image_is_an_error(tmp_path: Path) -> None:
    for part in (_write(tmp_path, [PERSON]) / "annotations").iterdir():
        part.rename(part.with_name("instances_train2017.json"))
    (tmp_path / "val2017").rename(tmp_path / "train2017")
    with pytest.raises(DataError, match="more than 1000 annotated pixels") as caught:
        open_dataset(f"coco_voc:{tmp_path}", "train")
    assert "coco takes every image" in caught.value.hint


def _square(top: int, left: int, side: int) -> list[list[int]]:
    bottom, right = top + side, left + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def _write(root: Path, annotations: list[dict[str, Any]], **change: Any) -> Path:
    """A COCO of one image of 8x10 (H x W), validation."""
    (root / "annotations").mkdir(exist_ok=True)
    (root / "val2017").mkdir(exist_ok=True)
    Image.new("RGB", (10, 8)).save(root / "val2017" / "000000000007.jpg")
    plain = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "height": 8, "width": 10}],
        "annotations": [{"image_id": 7, "id": i, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "person"}, {"id": 67, "name": "dining table"}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(plain | change))
    return root


TABLE = {"category_id": 67, "segmentation": _square(0, 0, 8), "area": 64, "iscrowd": 0}
PERSON = {"category_id": 1, "segmentation": _square(2, 2, 3), "area": 9, "iscrowd": 0}


@pytest.mark.parametrize("annotations", [[TABLE, PERSON], [PERSON, TABLE]])
def test_the_smaller_of_two_instances_is_on_top_and_in_coco_voc_neither(
    tmp_path: Path, annotations: list[dict[str, Any]]
) -> None:
    root = _write(tmp_path, annotations)
    expected = np.zeros((8, 10), np.uint8)
    expected[:, :8] = CLASSES.index("dining table")
    expected[2:5, 2:5] = 1
    np.testing.assert_array_equal(open_dataset(f"coco:{root}")[0].label, expected)
    expected[:, :8] = VOC_CLASSES.index("diningtable")
    expected[2:5, 2:5] = 255
    np.testing.assert_array_equal(open_dataset(f"coco_voc:{root}")[0].label, expected)


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_crowd_is_ignored_where_no_instance_is(tmp_path: Path, is_packed: bool) -> None:
    inside = np.zeros((8, 10), np.uint8, order="F")
    inside[1:7, 1:9] = 1
    run = coco_mask.encode(inside)
    flat = inside.ravel(order="F")
    ends = np.flatnonzero(np.diff(np.r_[0, flat])).tolist()
    counts = np.diff([0, *ends, flat.size]).tolist()
    packed = {"size": [8, 10], "counts": run["counts"].decode() if is_packed else counts}
    crowd = {"category_id": 1, "segmentation": packed, "area": 48, "iscrowd": 1}
    root = _write(tmp_path, [crowd, PERSON])
    expected = np.where(inside == 1, 255, 0)
    expected[2:5, 2:5] = 1
    np.testing.assert_array_equal(open_dataset(f"coco:{root}")[0].label, expected)


def test_the_pixels_are_taken_as_stored_as_the_annotations_count_them(tmp_path: Path) -> None:
    root = _write(tmp_path, [PERSON])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 8)).save(root / "val2017" / "000000000007.jpg", exif=exif)
    dataset = open_dataset(f"coco:{root}")
    assert isinstance(dataset, InstanceDataset)
    assert dataset[0].image.shape == (*dataset.image_size(0), 3) == (8, 10, 3)


def test_a_worker_process_can_be_sent_the_data_set(tmp_path: Path) -> None:
    dataset = open_dataset(f"coco:{_write(tmp_path, [PERSON])}")
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[0].label, dataset[0].label)


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [[1.0, 2.0]],
        "text",
        {"size": [8, 10]},
        {"size": [4, 4], "counts": [8, 8]},
        {"size": [8, 10], "counts": "~"},
    ],
)
def test_a_segmentation_that_cannot_be_drawn_names_the_image(tmp_path: Path, broken: Any) -> None:
    root = _write(tmp_path, [PERSON | {"segmentation": broken}])
    try:
        label = open_dataset(f"coco:{root}")[0].label
    except DataError as error:
        assert "000000000007.jpg" in str(error)  # noqa: PT017  a polygon of no area is allowed
    else:
        assert broken in ([[1.0, 2.0]], {"size": [8, 10], "counts": "~"})
        assert label.shape == (8, 10)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    root = _write(tmp_path, [], categories=[{"id": 1, "name": "cell"}])
    with pytest.raises(DataError, match="category 1 'cell'"):
        open_dataset(f"coco:{root}")
    _write(root, [PERSON | {"category_id": 12}])
    with pytest.raises(DataError, match=r"an instance of the category 12, .* \(image 7\)"):
        open_dataset(f"coco:{root}")
    _write(root, [], images=[])
    with pytest.raises(DataError, match="0 of 0 images"):
        open_dataset(f"coco:{root}")
    _write(root, [])
    Image.new("RGB", (8, 8)).save(root / "val2017" / "000000000007.jpg")
    with pytest.raises(LabelSizeError, match=r"is 10x8, its image .*000000000007\.jpg 8x8"):
        open_dataset(f"coco:{root}")[0]
    (root / "val2017" / "000000000007.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images are missing, e\.g\. .*000000000007\.jpg"):
        open_dataset(f"coco:{root}")
    (root / "val2017").rmdir()
    with pytest.raises(DataError, match=r"neither .*val2017 nor .*images"):
        open_dataset(f"coco:{root}")
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    (root / "val2017").mkdir()
    with pytest.raises(DataError, match=r"instances_val2017\.json cannot be read"):
        open_dataset(f"coco:{root}")
    with pytest.raises(NoSplitError, match=r"instances_train2017\.json") as caught:
        open_dataset(f"coco:{root}", "train")
    assert "instances_val2017.json" in caught.value.hint


def test_without_pycocotools_the_install_line_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _write(tmp_path, [])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError) as caught:
        open_dataset(f"coco:{root}")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("masks", ["annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"])
@pytest.mark.parametrize("images", ["val2017", "images/val2017"])
def test_coco_stuff_reads_ids_minus_one(tmp_path: Path, masks: str, images: str) -> None:
    assert len(set(STUFF_CLASSES)) == len(STUFF_CLASSES) == 171
    # Rows of the owners' labels.txt; 12 (street sign) never occurs.
    known = {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 97: "bush", 124: "grass",
             149: "road", 157: "sky-other", 182: "wood"}  # fmt: skip
    stored = np.array([[k - 1 for k in known] + [255, 11]], np.uint8)
    (tmp_path / masks / "val2017").mkdir(parents=True)
    (tmp_path / images).mkdir(parents=True)
    Image.new("RGB", (stored.size, 1)).save(tmp_path / images / "a.jpg")
    Image.fromarray(stored).save(tmp_path / masks / "val2017" / "a.png")
    dataset = open_dataset(f"coco_stuff:{tmp_path}")
    label = dataset[0].label[0]
    assert [STUFF_CLASSES[k] for k in label[:-2]] == list(known.values())
    assert label[-2:].tolist() == [255, 255]
    Image.fromarray(np.full((1, stored.size), 182, np.uint8)).save(
        tmp_path / masks / "val2017" / "a.png"
    )
    with pytest.raises(LabelIdError, match=r"\[182\]"):
        dataset[0]
    with pytest.raises(NoSplitError, match="train2017"):
        open_dataset(f"coco_stuff:{tmp_path}", "train")
