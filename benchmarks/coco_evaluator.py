"""COCO's AP and AR of masks: ours against pycocotools' own run, one process against two.

    .venv/bin/python benchmarks/coco_evaluator.py [TINYCOCO] [--part PART]

TINYCOCO (default: $SEGDEPLOY_DATA/tinycoco) is in COCO's layout. Predictions are its instances,
perturbed: grown, eroded, shifted, dropped, given a wrong class, and false ones added, with random
scores. pycocotools' run is the challenge's: a result file, loaded and judged without our code. Two
processes are two ranks of a gloo group, between whom some images are repeated. The part `evaluate`
is `evaluate --instances` by one process, by `nproc=2` and by two ranks, against pycocotools on the
same label maps; its truth is what its untrained model finds, perturbed, so that the scores mean
something. Writes benchmarks/results/coco_evaluator.json (PART: that part of it alone); ends with
an error if a number differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from segdeploy.backends.predictor import open_predictor
from segdeploy.core.files import write_json
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.frameworks.distributed import process_group
from segdeploy.measure.environment import describe_environment
from segdeploy.metrics.coco import IOU_TYPES, CocoEvaluator
from segdeploy.metrics.instances import Instances, find_instances

HERE = Path(__file__).parent
SPLITS, MODEL, SIZE = ("train2017", "val2017"), "lraspp_mobilenet_v3_small", (128, 160)
SHOWN = (0, 1, 17)  # Background, person, dog.
RESULTS = HERE / "results" / "coco_evaluator.json"
FALSE_RATE, WRONG_RATE = 0.5, 0.1

Predictions = dict[int, Instances]
Scores = dict[str, dict[str, Any]]


def perturb(truth: COCO, seed: int = 0) -> Predictions:
    """Return predictions that are sometimes right; every image has at least one."""
    rng, categories = np.random.default_rng(seed), truth.getCatIds()
    found: Predictions = {}
    for image in truth.loadImgs(truth.getImgIds()):
        blank = np.zeros((image["height"], image["width"]), np.bool_)
        masks, classes = [_box(blank, rng)], [rng.choice(categories)]
        for annotation in truth.loadAnns(truth.getAnnIds(image["id"])):
            mask = truth.annToMask(annotation).astype(bool)
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                is_wrong = rng.random() < WRONG_RATE
                masks.append(_disturb(mask, rng))
                classes.append(rng.choice(categories) if is_wrong else annotation["category_id"])
            if rng.random() < FALSE_RATE:
                masks.append(_box(blank, rng))
                classes.append(annotation["category_id"])
        scores = rng.random(len(masks)).round(2)  # Some are equal.
        found[image["id"]] = Instances(np.stack(masks), np.array(classes), scores)
    return found


def _box(blank: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    mask, (height, width) = blank.copy(), blank.shape
    top, left = rng.integers(height - 20), rng.integers(width - 20)
    mask[top : top + rng.integers(5, 100), left : left + rng.integers(5, 100)] = True
    return mask


def _disturb(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    steps = int(rng.integers(1, 6))
    ways = (
        lambda: ndimage.binary_dilation(mask, iterations=steps),
        lambda: ndimage.binary_erosion(mask, iterations=min(steps, 2)),
        lambda: np.roll(mask, tuple(rng.integers(-8, 9, 2)), (0, 1)),
        lambda: mask,
    )
    return np.asarray(ways[rng.integers(len(ways))](), np.bool_)


def judge_by_pycocotools(truth_file: Path, predictions: Predictions, folder: Path) -> Scores:
    """Return the twelve numbers of COCO's own run on a result file; -1 is None."""
    found: Scores = {}
    for iou_type in IOU_TYPES:
        rows = []
        for image_id, instances in predictions.items():
            columns = zip(instances.masks, instances.categories, instances.scores, strict=True)
            for mask, category, score in columns:
                run = coder.encode(np.asfortranarray(mask, np.uint8))
                row = {"image_id": image_id, "category_id": int(category), "score": float(score)}
                shape = {"segmentation": run | {"counts": run["counts"].decode()}}
                rows.append(
                    row | (shape if iou_type == "segm" else {"bbox": coder.toBbox(run).tolist()})
                )
        (folder / "results.json").write_text(json.dumps(rows))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(truth_file)
            judge = COCOeval(truth, truth.loadRes(str(folder / "results.json")), iou_type)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        found[iou_type] = {"stats": [None if v < 0 else float(v) for v in judge.stats]}
    return found


def stats(scores: Scores) -> Scores:
    """Return the twelve numbers of our results in the same form."""
    return {
        name: {"stats": [v for key, v in of_type.items() if key != "class_ap"]}
        for name, of_type in scores.items()
    }


def in_ranks(*arguments: str) -> None:
    """Run this script in two ranks of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit("a rank failed")


def score_as_rank(truth_file: Path, folder: Path) -> None:
    """Score this rank's share of the images, some of which the other has as well."""
    predictions: Predictions = pickle.loads((folder / "predictions").read_bytes())  # noqa: S301  ours
    with process_group("cpu") as group:
        evaluator = CocoEvaluator(truth_file)
        ids = sorted(predictions)
        ids += ids[: 2 + len(ids) % 2]  # As a sampler that fills up the last batch.
        for image_id in ids[group.rank :: 2]:
            evaluator.update({image_id: predictions[image_id]})
        evaluator.synchronize(group.gather)
        found = {name: asdict(scores) for name, scores in evaluator.summarize().items()}
        (folder / f"rank{group.rank}.json").write_text(json.dumps(stats(found)))


def compare_evaluators(root: Path, split: str, folder: Path) -> dict[str, Any]:
    """Return the numbers of perturbed instances, and what differs between the ways."""
    truth_file = root / "annotations" / f"instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = perturb(COCO(truth_file))
    (folder / "predictions").write_bytes(pickle.dumps(predictions))
    evaluator = CocoEvaluator(truth_file)
    evaluator.update(predictions)
    alone = stats({name: asdict(found) for name, found in evaluator.summarize().items()})
    in_ranks("--rank", str(truth_file), str(folder))
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    theirs = judge_by_pycocotools(truth_file, predictions, folder)
    return {
        "num_images": len(predictions),
        "num_instances": sum(len(each.masks) for each in predictions.values()),
        "segdeploy": alone,
        "pycocotools": theirs,
        "equal": {"pycocotools": alone == theirs, "two_ranks": ranks == [alone, alone]},
    }


def evaluate_as_rank(checkpoint: Path, data: str, folder: Path) -> None:
    """Evaluate as one of two ranks, which agree on the result."""
    result = evaluate(checkpoint, data=data, instances=IOU_TYPES, save=False)
    rank = os.environ["RANK"]
    (folder / f"rank{rank}.json").write_text(json.dumps(stats(result.instances or {})))


def compare_evaluations(root: Path, folder: Path) -> dict[str, Any]:
    """Return the scores of the instances of a model, and what differs between the ways."""
    checkpoint = _create_checkpoint(folder / "run" / "checkpoint")
    data = f"coco:{_write_tree(checkpoint, root, folder / 'tree')}"
    alone, spawned = (
        stats(evaluate(checkpoint, data=data, instances=IOU_TYPES, nproc=n, save=False).instances
              or {})
        for n in (1, 2)
    )  # fmt: skip
    in_ranks("--evaluate", str(checkpoint), data, str(folder))
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    dataset: Any = open_dataset(data, "val")
    categories = {label: category for category, label in dataset.labels.items()}
    predictions: Predictions = {}
    with open_predictor(checkpoint) as predictor:
        for index, photo in enumerate(dataset.photos):
            found = predictor.predict(dataset[index].image, with_confidence=True)
            predictions[photo.image_id] = find_instances(
                found.labels, np.asarray(found.confidence), categories
            )
    theirs = judge_by_pycocotools(dataset.truth, predictions, folder)
    return {
        "num_images": len(predictions),
        "num_instances": sum(len(each.masks) for each in predictions.values()),
        "segdeploy": alone,
        "equal": {
            "pycocotools": alone == theirs,
            "nproc_2": alone == spawned,
            "two_ranks": ranks == [alone, alone],
        },
    }


def _create_checkpoint(path: Path) -> Path:
    import torch

    from segdeploy.core.preprocess import PreprocessSpec, SizeRule
    from segdeploy.core.task import Task
    from segdeploy.data.coco import CLASSES
    from segdeploy.zoo import create_model, save_checkpoint

    torch.manual_seed(0)
    state = create_model(MODEL, len(CLASSES)).state_dict()
    for key in state:
        if key.endswith("low_classifier.weight"):  # Three classes that share the image.
            state[key][list(SHOWN)] = 3 * torch.randn(len(SHOWN), *state[key].shape[1:])
        elif key.endswith("low_classifier.bias"):
            state[key][:] = -100
            state[key][list(SHOWN)] = 0
    save_checkpoint(
        path, state, model=MODEL, task=Task.MULTICLASS, classes=CLASSES, trained=False,
        preprocess=PreprocessSpec(size_rule=SizeRule.FIXED, size=SIZE),
    )  # fmt: skip
    return path


def _write_tree(checkpoint: Path, root: Path, tree: Path) -> Path:
    """Write a COCO of the validation images whose truth is what the model finds, perturbed."""
    source: Any = open_dataset(f"coco:{root}", "val")
    content = json.loads(source.truth.read_bytes())
    categories = {label: category for category, label in source.labels.items()}
    rng, annotations = np.random.default_rng(0), list[dict[str, Any]]()
    with open_predictor(checkpoint) as predictor:
        for index, photo in enumerate(source.photos):
            found = predictor.predict(source[index].image, with_confidence=True)
            parts = find_instances(found.labels, np.asarray(found.confidence), categories)
            for mask, category in zip(parts.masks, parts.categories.tolist(), strict=True):
                run = coder.encode(np.asfortranarray(_disturb(mask, rng), np.uint8))
                if rng.random() < 0.3 or not coder.area(run):
                    continue
                annotations.append({
                    "id": len(annotations) + 1, "image_id": photo.image_id, "iscrowd": 0,
                    "category_id": category, "area": float(coder.area(run)),
                    "segmentation": run | {"counts": run["counts"].decode()},
                    "bbox": coder.toBbox(run).tolist(),
                })  # fmt: skip
    (tree / "annotations").mkdir(parents=True)
    file = tree / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(content | {"annotations": annotations}))
    (tree / "val2017").symlink_to(source.photos[0].path.parent.resolve())
    return tree


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        score_as_rank(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--evaluate"]:
        evaluate_as_rank(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser()
    data = Path(os.environ.get("SEGDEPLOY_DATA", HERE.parent.parent / "shared" / "data"))
    parser.add_argument("root", nargs="?", type=Path, default=data / "tinycoco")
    parser.add_argument("--part", choices=(*SPLITS, "evaluate"))
    given = parser.parse_args()
    document: dict[str, Any] = {}
    for name in [given.part] if given.part else (*SPLITS, "evaluate"):
        with tempfile.TemporaryDirectory() as folder:
            document[name] = (
                compare_evaluations(given.root, Path(folder))
                if name == "evaluate"
                else compare_evaluators(given.root, name, Path(folder))
            ) | {"environment": describe_environment()}
    kept = json.loads(RESULTS.read_bytes()) if given.part else {}
    write_json(RESULTS, kept | document)
    for name, part in document.items():
        aps = {kind: found["stats"][0] for kind, found in part["segdeploy"].items()}
        print(f"{name:10} AP {aps}  equal: {part['equal']}")
    if not all(all(part["equal"].values()) for part in document.values()):
        raise SystemExit("the numbers differ")


if __name__ == "__main__":
    main()
