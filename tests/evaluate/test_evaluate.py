"""Evaluate against a slow loop; the same counts whatever the number of processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segdeploy.backends.predictor import Predictor
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    RunLockedError,
    SegDeployError,
)
from segdeploy.core.folder import Checkpoint
from segdeploy.core.lock import run_lock
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, preprocess_image
from segdeploy.core.results import EvalResult, read_result
from segdeploy.core.scores import class_iou, mean_iou
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate, stage
from segdeploy.metrics.bootstrap import class_intervals, draw_counts, interval
from segdeploy.metrics.boundary import (
    band_counts,
    class_boundary_f,
    class_boundary_iou,
    contour_counts,
)
from segdeploy.zoo import create_model, load_module, main_logits, save_checkpoint

DATA = "synthetic:48x64:28"  # 7 images to validate on.
CLASSES = ("background", "disc", "box", "triangle", "bar")


def _save(
    root: Path, task: Task = Task.MULTICLASS, classes: Sequence[str] = CLASSES, **spec: Any
) -> Checkpoint:
    torch.manual_seed(0)
    module = create_model("lraspp_mobilenet_v3_small", 1 if task is Task.BINARY else len(classes))
    state = module.state_dict()
    for key in state:  # Spread the logits, so that a random model predicts every class.
        if "classifier" in key and key.endswith("weight"):
            state[key] = state[key] * 20
    saved: Checkpoint = save_checkpoint(
        root / "run" / "checkpoint", state, model="lraspp_mobilenet_v3_small", task=task,
        classes=classes, preprocess=PreprocessSpec(**spec), trained=False,
    )  # fmt: skip
    return saved


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _save(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Count with torch alone."""
    matrix = np.zeros((5, 5), np.int64)
    for label, logits in _predict_all(load_module(checkpoint), DATA):
        for truth, guess in zip(label.flat, logits.argmax(0).flat, strict=True):
            if truth != 255:
                matrix[truth, guess] += 1
    assert np.count_nonzero(matrix.sum(0)) > 1
    return matrix


def test_counts_equal_a_slow_loop_and_are_written(
    checkpoint: Checkpoint, expected: NDArray[np.int64]
) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(checkpoint.path, data=DATA, progress=lambda *a: seen.append(a))
    np.testing.assert_array_equal(result.confusion, expected)
    assert (result.num_images, result.data) == (7, "synthetic/val")
    assert seen == [(i, 7) for i in range(1, 8)]
    written = read_result(checkpoint.path / "eval.json")
    assert written == json.loads(json.dumps(result.to_dict()))


@pytest.fixture(scope="module")
def outlined(checkpoint: Checkpoint) -> EvalResult:
    return evaluate(checkpoint.path, data=DATA, boundary=True, save=False)


def test_two_processes_count_the_same(
    checkpoint: Checkpoint, expected: NDArray[np.int64], outlined: EvalResult
) -> None:
    result = evaluate(checkpoint.path, data=DATA, nproc=2, boundary=True, save=False)
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.num_images == 7
    assert result.to_dict() == outlined.to_dict()


def _predict_all(module: torch.nn.Module, data: str) -> list[tuple[Any, NDArray[np.float64]]]:
    """Return labels (H, W) and logits (K, H, W) of the validation split, with torch alone."""
    dataset, found = open_dataset(data, "val"), []
    for i in range(len(dataset)):
        sample = dataset[i]
        tensor = torch.from_numpy(preprocess_image(sample.image, PreprocessSpec()))[None]
        with torch.inference_mode():
            logits = main_logits(module(tensor))[0].double().numpy()
        found.append((sample.label, logits))
    return found


def test_scores_of_single_images_follow_the_images(
    checkpoint: Checkpoint, outlined: EvalResult
) -> None:
    pairs = [(t, x.argmax(0)) for t, x in _predict_all(load_module(checkpoint), DATA)]
    counts = np.array(
        [
            [[((t == k) & (p == k)).sum(), (t == k).sum(), ((p == k) & (t != 255)).sum()]
             for k in range(5)]
            for t, p in pairs
        ]
    ).transpose(0, 2, 1)  # fmt: skip
    low, high = outlined.mean_iou_ci or (0, 0)
    draws = draw_counts(counts)
    assert (low, high) == interval(mean_iou(draws))
    by_class = class_intervals(class_iou(draws), counts)
    assert outlined.class_iou_ci == dict(zip(CLASSES, by_class, strict=True))
    assert low < (outlined.mean_iou or 0) < high
    bands = np.stack([band_counts(*pair, 5) for pair in pairs])
    contours = np.stack([contour_counts(*pair, 5) for pair in pairs])
    for found, wanted in (
        (outlined.class_boundary_iou, class_boundary_iou(bands)),
        (outlined.class_boundary_f, class_boundary_f(contours)),
    ):
        assert list((found or {}).values()) == pytest.approx(wanted.tolist())
    assert outlined.boundary_iou == pytest.approx(np.mean(class_boundary_iou(bands)))
    assert (outlined.mae, outlined.max_f, outlined.foreground_iou) == (None, None, None)


def test_outlines_are_scored_on_demand_only(checkpoint: Checkpoint) -> None:
    result = evaluate(checkpoint.path, data=DATA, limit=1, save=False)
    assert (result.class_boundary_iou, result.boundary_f) == (None, None)
    assert (result.mean_iou_ci, result.class_iou_ci) == (
        None,
        None,
    )  # One image says nothing about others.


def _write_folder(root: Path, count: int, classes: Sequence[str] = CLASSES) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        for kind in ("images", "labels"):
            (root / kind / "val").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / "val" / f"{i}.png")
        Image.new("L", (64, 48), i % 2).save(root / "labels" / "val" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_label_id_that_is_no_class_is_a_data_error(
    checkpoint: Checkpoint, tmp_path: Path, nproc: int
) -> None:
    root = _write_folder(tmp_path, 3)
    Image.new("L", (64, 48), 77).save(root / "labels" / "val" / "2.png")
    with pytest.raises(DataError, match="77"):
        evaluate(checkpoint.path, data=f"folder:{root}", nproc=nproc)
    assert not (checkpoint.path / "eval.json.tmp").exists()


def test_a_killed_process_is_a_clear_error(checkpoint: Checkpoint) -> None:
    def kill(done: int, total: int) -> None:
        assert done < total == 100
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(SegDeployError, match="ended without an answer"):
        evaluate(checkpoint.path, data="synthetic:48x64:400", nproc=2, save=False, progress=kill)


def test_absent_classes_are_listed_and_not_averaged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = _write_folder(tmp_path, 2)
    result = evaluate(checkpoint.path, data=f"folder:{root}", save=False)
    assert result.absent_classes == ["box", "triangle", "bar"]
    present = [result.class_iou["background"], result.class_iou["disc"]]
    assert result.mean_iou == pytest.approx(np.mean([p for p in present if p is not None]))


def test_another_class_count_says_both(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = _write_folder(tmp_path, 1, CLASSES[:3])
    with pytest.raises(DataError, match=r"knows 5 classes.*has 3"):
        evaluate(checkpoint.path, data=f"folder:{root}")
    with pytest.raises(DataError, match=r"multiclass.*binary"):
        evaluate(checkpoint.path, data="synthetic_binary:48x64")


def test_the_same_classes_in_another_order_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = _write_folder(tmp_path, 1, CLASSES[::-1])
    with pytest.raises(DataError, match="another order"):
        evaluate(checkpoint.path, data=f"folder:{root}")


def test_a_binary_model_has_a_confusion_of_two(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",))
    result = evaluate(saved.path, data="synthetic_binary:48x64:8", save=False)
    assert result.confusion.shape == (2, 2)
    assert list(result.class_iou) == ["background", "object"]


BINARY = "synthetic_binary:48x64:8"


def test_a_binary_model_is_scored_by_its_probabilities(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",))
    result = evaluate(saved.path, data=BINARY, save=False)
    errors, hits, found, true = [], 0, 0, 0
    curves = np.zeros((2, 255))
    pairs = _predict_all(load_module(saved), BINARY)
    for label, logits in pairs:
        counted = label != 255
        truth, logit = label[counted] == 1, logits[0][counted]
        probability = 1 / (1 + np.exp(-logit))
        errors.append(np.abs(probability - truth).mean())
        hits += ((logit > 0) & truth).sum()
        found, true = found + (logit > 0).sum(), true + truth.sum()
        above = probability[None] >= np.arange(255)[:, None] / 255
        right = (above & truth).sum(1)
        curves += right / np.maximum(above.sum(1), 1), right / truth.sum()
    precision, recall = curves / len(pairs)
    f = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)
    assert result.mae == pytest.approx(np.mean(errors), rel=1e-4)
    assert result.max_f == pytest.approx(f.max(), rel=1e-3)
    assert result.foreground_iou == pytest.approx(hits / (found + true - hits))
    assert result.foreground_dice == pytest.approx(2 * hits / (found + true))
    assert evaluate(saved.path, data=BINARY, save=False, nproc=2).to_dict() == result.to_dict()


class _LabelsOnly:
    """A session under the `labels` contract."""

    inputs = outputs = ()

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {"labels": np.zeros((len(batch), *batch.shape[2:]), np.uint8)}

    def bind(self, batch: NDArray[Any]) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


def test_labels_alone_have_no_saliency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",))
    io = IoContract(output=OutputKind.LABELS)
    predictor = Predictor(_LabelsOnly(), PreprocessSpec(), Task.BINARY, io)
    monkeypatch.setattr(stage, "open_predictor", lambda *_, **__: predictor)
    result = evaluate(saved.path, data=BINARY, save=False)
    assert (result.mae, result.max_f) == (None, None)
    assert result.foreground_iou == 0


def test_scored_at_the_labels_own_size(tmp_path: Path) -> None:
    saved = _save(tmp_path, size_rule=SizeRule.FIXED, size=(64, 96))
    result = evaluate(saved.path, data=DATA, save=False)
    labelled = sum(int((s.label != 255).sum()) for s in _samples())
    assert result.confusion.sum() == labelled


def _samples() -> list[Any]:
    dataset = open_dataset(DATA, "val")
    return [dataset[i] for i in range(len(dataset))]


def test_a_limited_evaluation_says_so(checkpoint: Checkpoint) -> None:
    result = evaluate(checkpoint.path, data=DATA, limit=3, save=False)
    assert result.num_images == 3
    assert "first 3 of 7" in result.data


def test_no_save_writes_nothing(tmp_path: Path) -> None:
    saved = _save(tmp_path)
    before = sorted(p.name for p in saved.path.iterdir())
    evaluate(saved.path, data=DATA, limit=1, save=False)
    assert sorted(p.name for p in saved.path.iterdir()) == before


def test_a_second_evaluation_replaces_its_pictures_only(tmp_path: Path) -> None:
    saved = _save(tmp_path)
    evaluate(saved.path, data=DATA)
    for name in ("mine.png", "eval_00_drawn_by_an_older_version.png"):
        (saved.path / "samples" / name).write_bytes(b"there before")
    evaluate(saved.path, data=DATA, limit=2)
    names = sorted(p.name for p in (saved.path / "samples").iterdir())
    assert [name.partition("_")[0] for name in names] == ["best", "mine.png", "worst"]


@pytest.mark.parametrize("options", [{"nproc": 0}, {"limit": 0}, {"nproc": -1}])
def test_senseless_options_are_refused(checkpoint: Checkpoint, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        evaluate(checkpoint.path, data=DATA, save=False, nproc=options.get("nproc", 1),
                 limit=options.get("limit"))  # fmt: skip


def test_a_locked_run_is_left_alone(checkpoint: Checkpoint) -> None:
    with run_lock(checkpoint.path.parent), pytest.raises(RunLockedError):
        evaluate(checkpoint.path, data=DATA, limit=1)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a checkpoint or artifact"):
        evaluate(tmp_path, data=DATA)


def test_the_result_reads_back(checkpoint: Checkpoint) -> None:
    result = evaluate(checkpoint.path, data=DATA, limit=1, save=False)
    again = EvalResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()


def test_a_result_of_an_older_version_reads(outlined: EvalResult) -> None:
    old = ("target", "data", "classes", "confusion", "num_images", "mean_iou")
    document = outlined.to_dict()
    again = EvalResult.from_dict({name: document[name] for name in old})
    assert again.mean_dice == outlined.mean_dice
    assert (again.mean_iou_ci, again.boundary_iou, again.foreground_dice) == (None, None, None)


def test_the_full_result_reads_back(outlined: EvalResult) -> None:
    document = json.loads(json.dumps(outlined.to_dict()))
    assert EvalResult.from_dict(document).to_dict() == document
