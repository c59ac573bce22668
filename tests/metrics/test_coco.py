"""COCO scores, against pycocotools' own path from result files, and against arithmetic."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from segdeploy.core.errors import BackendUnavailableError, ConfigError, DataError
from segdeploy.metrics.coco import CocoEvaluator, encode_instances
from segdeploy.metrics.instances import Instances, find_instances

Predictions = dict[int, Instances]


@pytest.fixture(scope="module", params=["train2017", "val2017"])
def truth_file(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    return shared_data / "tinycoco" / "annotations" / f"instances_{request.param}.json"


def _load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def _perturb(truth: COCO, seed: int = 0) -> Predictions:
    """Grow, shrink, move, drop and repeat the true instances; scores are random, some equal."""
    rng = np.random.default_rng(seed)
    categories = truth.getCatIds()
    predictions: Predictions = {}
    for image in truth.loadImgs(truth.getImgIds()):
        masks, found = [np.zeros((image["height"], image["width"]), np.bool_)], [categories[0]]
        for annotation in truth.loadAnns(truth.getAnnIds(image["id"])):
            mask = truth.annToMask(annotation).astype(bool)
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                masks.append(_disturb(mask, rng))
                wrong = rng.random() < 0.1
                found.append(rng.choice(categories) if wrong else annotation["category_id"])
        scores = rng.random(len(masks)).round(2)
        predictions[image["id"]] = Instances(np.stack(masks), np.array(found), scores)
    return predictions


def _disturb(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    steps = int(rng.integers(1, 6))
    match rng.integers(4):
        case 0:
            changed: NDArray[np.bool_] = ndimage.binary_dilation(mask, iterations=steps)
        case 1:
            changed = ndimage.binary_erosion(mask, iterations=min(steps, 2))
        case 2:
            changed = np.roll(mask, rng.integers(-8, 9, 2), (0, 1))
        case _:
            changed = mask
    return changed


def _judge(truth_file: Path, predictions: Predictions, iou_type: str, folder: Path) -> COCOeval:
    """Score through a result file, as the challenge does."""
    rows: list[dict[str, Any]] = []
    for image_id, instances in predictions.items():
        columns = zip(instances.masks, instances.categories, instances.scores, strict=True)
        for mask, category, score in columns:
            run = coder.encode(np.asfortranarray(mask, np.uint8))
            row = {"image_id": image_id, "category_id": int(category), "score": float(score)}
            if iou_type == "segm":
                row["segmentation"] = run | {"counts": run["counts"].decode()}
            else:
                row["bbox"] = coder.toBbox(run).tolist()
            rows.append(row)
    (folder / "results.json").write_text(json.dumps(rows))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth_file)
        judge = COCOeval(truth, truth.loadRes(str(folder / "results.json")), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def test_the_twelve_numbers_are_pycocotools_own(
    truth_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = _perturb(_load(truth_file))
    evaluator = CocoEvaluator(truth_file)
    for image_id, instances in predictions.items():
        evaluator.update({image_id: instances})
    found = evaluator.summarize()
    assert capsys.readouterr().out == ""
    for iou_type in ("segm", "bbox"):
        expected = _judge(truth_file, predictions, iou_type, tmp_path)
        numbers = [v for k, v in asdict(found[iou_type]).items() if k != "class_ap"]
        assert numbers == [None if v < 0 else v for v in expected.stats]
        assert 0.05 < numbers[0] < 0.95
        for k, category in enumerate(expected.cocoGt.loadCats(expected.params.catIds)):
            precision = expected.eval["precision"][:, :, k, 0, 2]
            known = precision[precision > -1]
            mean = float(np.mean(known)) if known.size else None
            assert found[iou_type].class_ap[category["name"]] == mean
    assert found["segm"] != found["bbox"]


def test_images_in_any_order_and_repeated_images_change_nothing(truth_file: Path) -> None:
    truth = _load(truth_file)
    predictions, other = _perturb(truth), _perturb(truth, 1)
    evaluator, again = CocoEvaluator(truth_file), CocoEvaluator(truth_file)
    evaluator.update(predictions)
    again.update(dict(reversed(predictions.items())))
    again.update(other)
    assert again.summarize() == evaluator.summarize()
    changed = CocoEvaluator(truth_file)
    changed.update(other)
    assert changed.summarize() != evaluator.summarize()


_RANK = """
import pickle, sys
from pathlib import Path
import torch.distributed as dist
from segdeploy.core.ending import end_process
from segdeploy.frameworks.distributed import process_group
from segdeploy.metrics.coco import CocoEvaluator, encode_instances

annotations, file, out = map(Path, sys.argv[1:])
predictions = pickle.loads(file.read_bytes())

def gather(mine):
    found = [None, None]
    dist.all_gather_object(found, mine)
    return found

with process_group("cpu") as group:
    evaluator = CocoEvaluator(annotations)
    ids = sorted(predictions)
    ids += ids[: len(ids) % 2 + 2]  # As a sampler that fills up the last batch.
    for image_id in ids[group.rank :: 2]:
        evaluator.update({image_id: predictions[image_id]})
    evaluator.synchronize(gather)
    out.with_suffix(f".{group.rank}").write_bytes(pickle.dumps(evaluator.summarize()))
end_process(0)  # Threads of the group may outlive it.
"""


def test_two_processes_give_the_bits_of_one(tmp_path: Path, shared_data: Path) -> None:
    annotations = shared_data / "tinycoco" / "annotations" / "instances_val2017.json"
    predictions = _perturb(_load(annotations))
    alone = CocoEvaluator(annotations)
    alone.update(predictions)
    (tmp_path / "predictions").write_bytes(pickle.dumps(predictions))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, annotations, tmp_path / "predictions", tmp_path / "out"],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            }, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(ranks):
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        found = pickle.loads((tmp_path / f"out.{rank}").read_bytes())
        assert found == alone.summarize()


def _truth(*masks: NDArray[np.bool_], first_id: int = 0) -> dict[str, Any]:
    """One image with instances of category 7; category 3 has none."""
    return {
        "images": [{"id": 5, "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": first_id + i, "image_id": 5, "category_id": 7, "iscrowd": 0,
                "segmentation": coder.encode(np.asfortranarray(mask, np.uint8)),
                "bbox": coder.toBbox(coder.encode(np.asfortranarray(mask, np.uint8))).tolist(),
                "area": int(mask.sum()),
            }
            for i, mask in enumerate(masks)
        ],
    }  # fmt: skip


def _square(top: int, left: int) -> NDArray[np.bool_]:
    mask = np.zeros((20, 30), np.bool_)
    mask[top : top + 5, left : left + 5] = True
    return mask


def _instances(*masks: NDArray[np.bool_]) -> Instances:
    count = len(masks)
    stacked = np.stack(masks) if masks else np.zeros((0, 20, 30), np.bool_)
    return Instances(stacked, np.full(count, 7), np.linspace(1, 0.5, count))


@pytest.mark.parametrize("first_id", [0, 1, 40])
def test_what_is_found_exactly_scores_one_whatever_the_annotation_ids(first_id: int) -> None:
    """An annotation with id 0 reads as 'no match' in pycocotools."""
    squares = _square(0, 0), _square(10, 10)
    evaluator = CocoEvaluator(_truth(*squares, first_id=first_id))
    evaluator.update({5: _instances(*squares)})
    scores = evaluator.summarize()["segm"]
    assert scores.ap == scores.ar_100 == scores.ap_small == pytest.approx(1)
    assert scores.ar_1 == 0.5
    assert scores.ap_medium is None
    assert scores.ap_large is None
    assert scores.class_ap == {"dog": pytest.approx(1), "cat": None}


def test_an_image_without_predictions_counts_as_missed() -> None:
    evaluator = CocoEvaluator(_truth(_square(0, 0)))
    evaluator.update({5: _instances()})
    assert evaluator.summarize()["segm"].ap == 0


def test_nothing_updated_has_no_score() -> None:
    found = CocoEvaluator(_truth(_square(0, 0)), ("segm",)).summarize()
    assert list(found) == ["segm"]
    assert found["segm"].ap is None
    assert found["segm"].class_ap == {"dog": None, "cat": None}


def test_the_truth_is_left_as_it_was() -> None:
    truth = _truth(_square(0, 0))
    before = pickle.dumps(truth)
    evaluator = CocoEvaluator(truth)
    evaluator.update({5: _instances(_square(0, 1))})
    assert evaluator.summarize() == evaluator.summarize()
    assert pickle.dumps(truth) == before


def test_keypoints_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"keypoints.*not supported"):
        CocoEvaluator(_truth(), ("segm", "keypoints"))
    with pytest.raises(ConfigError, match="Unknown IoU type 'mask'"):
        CocoEvaluator(_truth(), ("mask",))


def test_predictions_that_do_not_fit_are_refused() -> None:
    evaluator = CocoEvaluator(_truth(_square(0, 0)))
    mask = np.zeros((1, 20, 30), np.bool_)
    with pytest.raises(DataError, match="no image 6"):
        evaluator.update({6: _instances()})
    with pytest.raises(DataError, match="no category 1"):
        evaluator.update({5: Instances(mask, np.array([1]), np.array([0.5]))})
    with pytest.raises(DataError, match=r"size \(30, 20\)"):
        evaluator.update({5: Instances(mask.transpose(0, 2, 1), np.array([7]), np.array([0.5]))})
    with pytest.raises(DataError, match="not finite"):
        Instances(mask, np.array([7]), np.array([np.nan]))
    with pytest.raises(DataError, match=r"masks \(M, H, W\)"):
        Instances(mask, np.array([7, 7]), np.array([0.5]))
    assert evaluator.image_ids == []


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [1]}'])
def test_a_file_that_is_no_annotation_is_a_data_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=r"bad\.json"):
        CocoEvaluator(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"none\.json"):
        CocoEvaluator(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change",
    [{"segmentation": []}, {"segmentation": [[1, 2, 3, 4]]}, {"segmentation": {}}, {"bbox": [1]}],
)
def test_an_annotation_without_shape_or_box_is_named(change: dict[str, Any]) -> None:
    truth = _truth(_square(0, 0))
    truth["annotations"] = [a | change for a in truth["annotations"]]
    with pytest.raises(DataError, match="an annotation of image 5 has no shape or no box"):
        CocoEvaluator(truth)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r"segdeploy\[coco\]"):
        CocoEvaluator(_truth())
    with pytest.raises(BackendUnavailableError, match="pycocotools"):
        find_instances(np.zeros((2, 2), np.uint8), np.ones((2, 2)), {})


def _flood(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Find parts of 8 neighbours pixel by pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = set[tuple[int, int]](), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                edge += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(5))
def test_instances_of_a_label_map_are_its_connected_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 0, 1, 2], (12, 15)).astype(np.uint8)
    confidence = rng.random(labels.shape).astype(np.float32)
    found = find_instances(labels, confidence, {1: 18, 2: 44})
    expected = [
        (18 if k == 1 else 44, part, np.mean([confidence[p] for p in part], dtype=float))
        for k in (1, 2)
        for part in sorted(_flood(labels == k), key=min)
    ]
    assert found.categories.tolist() == [category for category, _, _ in expected]
    for mask, score, (_, part, mean) in zip(found.masks, found.scores, expected, strict=True):
        assert {(int(y), int(x)) for y, x in np.argwhere(mask)} == part
        assert score == pytest.approx(mean, rel=1e-6)


def test_a_label_map_without_objects_has_no_instances() -> None:
    found = find_instances(np.zeros((4, 6), np.uint8), np.ones((4, 6)), {1: 18})
    assert found.masks.shape == (0, 4, 6)


def test_of_a_class_the_100_surest_parts_are_kept_in_order() -> None:
    """As COCO's evaluation does: it looks at no more of one image and class."""
    labels, rng = np.zeros((30, 40), np.uint8), np.random.default_rng(0)
    labels[::2, ::2] = 1  # 300 single pixels.
    labels[1, 1] = 2
    confidence = rng.permutation(labels.size).reshape(labels.shape) / labels.size
    found = find_instances(labels, confidence, {1: 18, 2: 44})
    assert found.categories.tolist() == [18] * 100 + [44]
    scores = confidence[::2, ::2].ravel()
    kept = [score for score in scores if score >= np.sort(scores)[-100]]
    assert found.scores[:100].tolist() == kept


def test_only_the_categories_that_are_asked_for_are_judged() -> None:
    truth = _truth(_square(0, 0), _square(10, 10))
    truth["annotations"][1]["category_id"] = 3
    both, one = CocoEvaluator(truth), CocoEvaluator(truth, categories={7})
    for evaluator in (both, one):
        evaluator.update({5: _instances(_square(0, 0))})
    assert both.summarize()["segm"].ap == pytest.approx(0.5)
    assert one.summarize()["segm"].ap == pytest.approx(1)
    assert one.summarize()["segm"].class_ap == {"dog": pytest.approx(1)}


def test_what_was_encoded_elsewhere_is_added_once() -> None:
    evaluator, right = CocoEvaluator(_truth(_square(0, 0))), _instances(_square(0, 0))
    evaluator.add({5: encode_instances(5, right)})
    evaluator.add({5: encode_instances(5, _instances(_square(10, 10)))})
    assert evaluator.summarize()["segm"].ap == pytest.approx(1)
