"""Scores of single images, against a slow loop; the worst and the best of them as pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeploy.backends.predictor import open_predictor
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import EvalResult, ImageScore, read_result
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.evaluate.ranking import image_scores, render_csv, worst_and_best
from segdeploy.evaluate.tally import Tally, Wanted
from segdeploy.zoo import create_model, save_checkpoint

DATA = "synthetic:48x64:28"  # 7 images to validate on.
CLASSES = ("background", "disc", "box", "triangle", "bar")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = create_model("lraspp_mobilenet_v3_small", 5)
    state = {
        key: value * 20 if "classifier" in key and key.endswith("weight") else value
        for key, value in module.state_dict().items()
    }
    path = tmp_path_factory.mktemp("images") / "run" / "checkpoint"
    save_checkpoint(
        path, state, model="lraspp_mobilenet_v3_small", task=Task.MULTICLASS, classes=CLASSES,
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def result(checkpoint: Path) -> EvalResult:
    return evaluate(checkpoint, data=DATA)


def _slow_scores(path: Path) -> list[tuple[str, float, float]]:
    dataset, found = open_dataset(DATA, "val"), []
    with open_predictor(path) as predictor:
        for i in range(len(dataset)):
            sample = dataset[i]
            valid = sample.label != 255
            truth, guess = sample.label[valid], predictor.predict(sample.image).labels[valid]
            ious = [
                ((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum()
                for k in np.unique(truth)
            ]
            found.append((sample.name, float(np.mean(ious)), float((truth == guess).mean())))
    return found


def test_each_image_has_its_scores(checkpoint: Path, result: EvalResult) -> None:
    expected = _slow_scores(checkpoint)
    assert [image.name for image in result.images] == [name for name, _, _ in expected]
    for image, (_, iou, accuracy) in zip(result.images, expected, strict=True):
        assert image.mean_iou == pytest.approx(iou)
        assert image.pixel_accuracy == pytest.approx(accuracy)


def test_the_scores_are_written_in_order(checkpoint: Path, result: EvalResult) -> None:
    with (checkpoint / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [image.name for image in result.images]
    assert [float(row["mean_iou"]) for row in rows] == [image.mean_iou for image in result.images]


def test_the_worst_and_the_best_are_drawn(checkpoint: Path, result: EvalResult) -> None:
    ranked = sorted(_slow_scores(checkpoint), key=lambda row: row[1])
    worst, best = [row[0] for row in ranked[:4]], [row[0] for row in ranked[:3:-1]]
    assert [image.name for image in result.worst] == worst
    assert [image.name for image in result.best] == best
    pictures = sorted((checkpoint / "samples").iterdir())
    assert [path.name for path in pictures] == [
        *(f"best_{i:02d}_{name}.png" for i, name in enumerate(best)),
        *(f"worst_{i:02d}_{name}.png" for i, name in enumerate(worst)),
    ]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 64
    written = read_result(checkpoint / "eval.json") or {}
    assert [image["name"] for image in written["worst"]] == worst


def test_two_processes_score_and_draw_the_same(checkpoint: Path, result: EvalResult) -> None:
    def contents() -> dict[str, bytes]:
        places = (checkpoint / "images.csv", *(checkpoint / "samples").iterdir())
        return {path.name: path.read_bytes() for path in places}

    alone = contents()
    again = evaluate(checkpoint, data=DATA, nproc=2)
    assert again.images == result.images
    assert contents() == alone


def _images(*scores: float | None) -> list[ImageScore]:
    return [ImageScore(i, f"image {i}", score, None) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "worst", "best"),
    [
        ([0.5, 0.2, 0.9, 0.2, 0.9], [1, 3], [4, 2]),  # Ties keep the order.
        ([0.5, None, 0.1], [2], [0]),
        ([0.4], [0], []),
        ([None, None], [], []),
        ([], [], []),
    ],
)
def test_ranks_are_definite_and_no_image_is_shown_twice(
    scores: list[float | None], worst: list[int], best: list[int]
) -> None:
    found = worst_and_best(_images(*scores), 2)
    assert [[image.place for image in images] for images in found] == [worst, best]


def test_names_survive_the_sum_over_processes() -> None:
    wanted = Wanted(2)
    names = ["früh/日本", 'a,"b"\n', "x" * 200]
    parts = [Tally.empty(wanted, 3) for _ in names]
    for place, (name, part) in enumerate(zip(names, parts, strict=True)):
        part.records[place]["name"] = name.encode()
        part.records[place]["classes"] = [[1, 0], [1, 2], [3, 0]]
    total = Tally.from_flat(wanted, np.sum([part.flat for part in parts], axis=0))
    images = image_scores(total.records)
    assert [image.name for image in images] == [*names[:2], "x" * 96]
    rows: list[Any] = list(csv.reader(render_csv(images).decode().splitlines(keepends=True)))
    assert [row[0] for row in rows[1:]] == [*names[:2], "x" * 96]


def test_an_unlabelled_image_has_no_score() -> None:
    (image,) = image_scores(np.zeros(1, Wanted(2).record))
    assert (image.mean_iou, image.pixel_accuracy) == (None, None)
    assert render_csv([image]).decode().splitlines()[1] == ",,"
