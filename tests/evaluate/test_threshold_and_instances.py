"""Evaluate at another threshold, and COCO's scores of a semantic model's parts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from segdeploy.backends.predictor import open_predictor
from segdeploy.cli import evaluate as _command
from segdeploy.cli.app import run_app
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import PreprocessSpec, preprocess_image
from segdeploy.core.results import EvalResult
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.coco import CLASSES, THINGS
from segdeploy.evaluate import evaluate
from segdeploy.zoo import create_model, load_module, main_logits, save_checkpoint

assert _command  # Imported to register the command.
MODEL = "lraspp_mobilenet_v3_small"
BINARY = "synthetic_binary:48x64:8"


def _save(root: Path, task: Task, classes: tuple[str, ...], spread: float) -> Any:
    torch.manual_seed(1)
    state = create_model(MODEL, len(classes)).state_dict()
    for key in state:
        if key.endswith(("low_classifier.weight", "high_classifier.weight")):
            state[key] *= spread
    return save_checkpoint(
        root / "run" / "checkpoint", state, model=MODEL, task=task, classes=classes,
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip


def test_a_binary_model_says_yes_above_the_threshold(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",), 20)
    module, dataset = load_module(saved), open_dataset(BINARY)
    table = np.zeros((2, 2), np.int64)
    for index in range(len(dataset)):
        tensor = torch.from_numpy(preprocess_image(dataset[index].image, PreprocessSpec()))[None]
        with torch.inference_mode():
            yes = (main_logits(module(tensor))[0, 0].double().sigmoid() > 0.7).int().numpy()
        for truth, guess in zip(dataset[index].label.flat, yes.flat, strict=True):
            if truth != 255:
                table[truth, guess] += 1
    plain = evaluate(saved.path, data=BINARY, save=False)
    strict = evaluate(saved.path, data=BINARY, threshold=0.7, save=False)
    np.testing.assert_array_equal(strict.confusion, table)
    assert (strict.confusion != plain.confusion).any()
    assert strict.mae == pytest.approx(plain.mae, abs=1e-7)  # Of probabilities, as max-F is.
    assert strict.max_f == pytest.approx(plain.max_f, abs=1e-6)
    assert (plain.threshold, strict.to_dict()["threshold"]) == (None, 0.7)
    for wrong in (0.0, 1.0, -3.0):
        with pytest.raises(ConfigError, match=r"\(0, 1\)"):
            evaluate(saved.path, data=BINARY, threshold=wrong, save=False)


def test_a_threshold_is_refused_where_nothing_can_be_decided_anew(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.MULTICLASS, ("a", "b"), 1)
    with pytest.raises(ConfigError, match="multiclass"):
        open_predictor(saved.path, threshold=0.4)
    from segdeploy.workflows import export_and_verify

    binary = _save(tmp_path / "binary", Task.BINARY, ("object",), 1)
    (made,) = export_and_verify(
        binary.path, ["torchscript-fp32"], tmp_path / "binary" / "run", verify=False,
        io=IoContract(output=OutputKind.LABELS),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="needs logits, but this artifact gives labels"):
        evaluate(made.outcome.path, data=BINARY, threshold=0.4)


SHOWN = [0, 1, 17]  # Background, person, dog.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of COCO's classes that shows three of them in patches."""
    torch.manual_seed(0)
    state = create_model(MODEL, len(CLASSES)).state_dict()
    for key in state:
        if key.endswith("low_classifier.weight"):
            state[key][SHOWN] = 3 * torch.randn(3, *state[key].shape[1:])
        elif key.endswith("low_classifier.bias"):
            state[key][:] = -100
            state[key][SHOWN] = 0
    return save_checkpoint(
        tmp_path_factory.mktemp("coco") / "run" / "checkpoint", state, model=MODEL,
        task=Task.MULTICLASS, classes=CLASSES, preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def coco(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small images; the truth is every other part that the model sees, in part moved."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir()
    images: list[dict[str, Any]] = []
    content: dict[str, Any] = {
        "images": images, "annotations": [],
        "categories": [{"id": key, "name": name} for key, name in THINGS.items()],
    }  # fmt: skip
    for image_id in (7, 3, 12):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        name = f"{image_id:012d}.png"
        Image.fromarray(pixels).save(root / "val2017" / name)
        images.append({"id": image_id, "file_name": name, "height": 48, "width": 64})
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(content))
    for number, row in enumerate(_slow_rows(saved, root), start=1):
        mask = coder.decode(row["segmentation"])
        run = coder.encode(np.asfortranarray(np.roll(mask, number % 3, axis=1)))
        if number % 4:
            content["annotations"].append({
                **row, "id": number, "iscrowd": 0, "area": int(coder.area(run)),
                "bbox": coder.toBbox(run).tolist(),
                "segmentation": run | {"counts": run["counts"].decode()},
            })  # fmt: skip
    file.write_text(json.dumps(content))
    return root


def _slow_rows(saved: Any, root: Path) -> list[dict[str, Any]]:
    """Return COCO's result rows of the connected parts, with torch, SciPy and pycocotools."""
    dataset: Any = open_dataset(f"coco:{root}")
    module, rows = load_module(saved), []
    for index, photo in enumerate(dataset.photos):
        tensor = torch.from_numpy(preprocess_image(dataset[index].image, PreprocessSpec()))[None]
        with torch.inference_mode():
            chance, labels = main_logits(module(tensor))[0].softmax(0).max(0)
        for label, category in enumerate(THINGS, start=1):
            parts, num = ndimage.label(labels.numpy() == label, np.ones((3, 3)))
            for part in range(1, num + 1):
                mask = np.asfortranarray(parts == part, np.uint8)
                run = coder.encode(mask)
                rows.append({
                    "image_id": int(Path(photo.path).stem), "category_id": category,
                    "segmentation": run | {"counts": run["counts"].decode()},
                    "score": float(chance.numpy()[parts == part].mean(dtype=float)),
                })  # fmt: skip
    return rows


def test_instances_are_scored_as_by_pycocotools_whatever_the_processes(
    coco: Path, saved: Any, tmp_path: Path
) -> None:
    data = f"coco:{coco}"
    result = evaluate(saved.path, data=data, instances=("segm",))
    (tmp_path / "rows.json").write_text(json.dumps(_slow_rows(saved, coco)))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(coco / "annotations" / "instances_val2017.json")
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "rows.json")), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    found = (result.instances or {})["segm"]
    numbers = [value for name, value in found.items() if name != "class_ap"]
    expected = [None if value < 0 else value for value in judge.stats]
    assert numbers == pytest.approx(expected)
    assert 0.1 < found["ap"] < 0.95
    assert {name for name, ap in found["class_ap"].items() if ap is not None} == {"person", "dog"}
    shared = evaluate(saved.path, data=data, instances=("segm",), nproc=2, save=False)
    assert shared.to_dict() == result.to_dict()
    written = json.loads((saved.path / "eval.json").read_text())
    assert written["instances"] == result.instances
    assert EvalResult.from_dict(written).instances == result.instances


def test_the_command_shows_instances_and_says_what_is_missing(
    coco: Path, saved: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(
            sys, "argv", ["segdeploy", "evaluate", str(saved.path), "--no-save", *arguments]
        )
        return run_app()

    data = f"coco:{coco}"
    assert call("--data", data, "--instances", "segm,bbox") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("AP50", "AR 100", "segm", "bbox"))
    assert call("--data", data, "--instances", "keypoints") == 2
    assert "'keypoints' is not supported" in capsys.readouterr().err
    assert call("--data", data, "--threshold", "0.5") == 2
    assert "multiclass" in capsys.readouterr().err
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *p: None if n == "scipy" else real(n, *p)
    )
    assert call("--data", data, "--instances", "segm") == 4
    assert "segdeploy[coco]" in capsys.readouterr().err


def test_data_without_instances_are_refused(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",), 1)
    with pytest.raises(ConfigError, match="no annotated instances"):
        evaluate(saved.path, data=BINARY, instances=("segm",), save=False)
