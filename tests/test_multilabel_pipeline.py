"""The whole chain on a multilabel task, tiny: every class is a yes or no of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import segdeploy
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.bench import bench
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import UnsupportedTargetError
from segdeploy.core.folder import load_artifact, load_checkpoint
from segdeploy.core.preprocess import PreprocessSpec, preprocess_image
from segdeploy.core.results import EvalResult
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.sample import Sample
from segdeploy.evaluate import evaluate
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.predict import predict
from segdeploy.report import report
from segdeploy.train import TrainConfig, train
from segdeploy.verify import compare_folders
from segdeploy.workflows import export_and_verify
from segdeploy.zoo import load_module, main_logits, save_checkpoint

TARGETS = ("torchscript-fp32", "onnx-fp32")
CLASSES = ("disc", "box", "triangle", "bar", "object")
DATA = "synthetic_multilabel:48x64:12"  # 3 images to validate on.
MODEL = "lraspp_mobilenet_v3_small"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint with two artifacts, verified."""
    out = tmp_path_factory.mktemp("runs") / "masks"
    config = TrainConfig(
        model=MODEL, data=DATA, out=str(out), epochs=2, batch_size=4, crop=(48, 64), workers=0,
        device="cpu", loss="binary_cross_entropy+dice", lr=0.05, rotate=5.0, warmup_steps=1,
        norm_momentum=0.3,
    )  # fmt: skip
    train(config)
    exports = export_and_verify(out / "checkpoint", TARGETS, out, data=DATA)
    assert [each.passed for each in exports] == [True, True]
    return out


def _logits(run: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return labels and logits (K, H, W) of the validation split, with torch alone."""
    module, found = load_module(load_checkpoint(run / "checkpoint")), []
    dataset = open_dataset(DATA)
    for index in range(len(dataset)):
        sample = dataset[index]
        tensor = torch.from_numpy(preprocess_image(sample.image, PreprocessSpec()))[None]
        with torch.inference_mode():
            found.append((sample.label, main_logits(module(tensor))[0].numpy()))
    return found


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_scores_are_those_of_torchmetrics(run: Path, threshold: float | None) -> None:
    prepare_torchvision()
    from torchmetrics.functional import classification as reference

    result = evaluate(run / "checkpoint", data=DATA, threshold=threshold, save=threshold is None)
    pairs = _logits(run)
    label, chance = (torch.from_numpy(np.stack(parts)) for parts in zip(*pairs, strict=True))
    guess = (torch.sigmoid(chance) > (threshold or 0.5)).int()
    given = guess, label.int(), 5
    table = reference.multilabel_confusion_matrix(*given, ignore_index=255)
    np.testing.assert_array_equal(result.confusion, table.numpy())
    assert int((label == 255).sum()) > 0
    assert result.confusion.sum() == int((label != 255).sum())
    assert result.classes == CLASSES
    present = [k for k in range(5) if (label[:, k] == 1).any()]
    iou = reference.multilabel_jaccard_index(*given, average="none", ignore_index=255)
    dice = reference.multilabel_f1_score(*given, average="none", ignore_index=255)
    assert result.mean_iou == pytest.approx(float(iou[present].mean()))
    assert result.mean_dice == pytest.approx(float(dice[present].mean()))
    right = ((guess == label) & (label != 255)).sum() / (label != 255).sum()
    assert result.pixel_accuracy == pytest.approx(float(right))
    assert EvalResult.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_processes_artifacts_and_views_agree(run: Path) -> None:
    whole = evaluate(run / "checkpoint", data=DATA, boundary=True, save=False)
    shared = evaluate(run / "checkpoint", data=DATA, boundary=True, nproc=2, save=False)
    assert shared.to_dict() == whole.to_dict()
    assert set(whole.class_boundary_iou or {}) == set(CLASSES)
    for name in TARGETS:
        other = evaluate(run / name, data=DATA, save=False)
        moved = np.abs(other.confusion - whole.confusion).sum()
        assert moved <= 1e-4 * whole.confusion.sum()
    with segdeploy.open(run / "onnx-fp32") as model:
        assert model.task is Task.MULTILABEL


def _tables(decide: Callable[[Sample], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return (K, 2, 2): class, truth, decision, counted by masks; labels of 255 do not count."""
    dataset, found = open_dataset(DATA), np.zeros((len(CLASSES), 2, 2), np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]
        for k, yes in enumerate(decide(sample)):
            for truth in (0, 1):
                labelled = sample.label[k] == truth
                found[k, truth] += (labelled & ~yes).sum(), (labelled & yes).sum()
    return found


@pytest.mark.parametrize("target", ["onnx-int8", "onnx-fp16"])
def test_smaller_artifacts_are_scored_as_their_runtime_decides(
    run: Path, tmp_path: Path, target: str
) -> None:
    made = export_and_verify(
        run / "checkpoint", [target], tmp_path / "run", calibration=DATA, data=DATA, verify=False
    )
    artifact = tmp_path / "run" / target
    assert artifact in [each.outcome.path for each in made]
    with segdeploy.open(artifact) as model:
        session = model.session

        def decide(sample: Sample) -> NDArray[np.bool_]:
            tensor = preprocess_image(sample.image, PreprocessSpec())[None]
            yes: NDArray[np.bool_] = session.run(tensor)["logits"][0] > 0
            return yes

        expected = _tables(decide)
    result = evaluate(artifact, data=DATA, save=False)
    np.testing.assert_array_equal(result.confusion, expected)


def test_views_and_windows_average_the_probability_of_each_class(run: Path) -> None:
    module = load_module(load_checkpoint(run / "checkpoint"))

    def by_halves(tensor: torch.Tensor) -> torch.Tensor:
        halves = [main_logits(module(half)) for half in torch.split(tensor, 32, dim=3)]
        return torch.cat(halves, dim=3)[0].sigmoid()

    def decide(sample: Sample) -> NDArray[np.bool_]:
        tensor = torch.from_numpy(preprocess_image(sample.image, PreprocessSpec()))[None]
        with torch.inference_mode():
            chance = (by_halves(tensor) + by_halves(tensor.flip(3)).flip(2)) / 2
        yes: NDArray[np.bool_] = (chance > 0.5).numpy()
        return yes

    window = SlidingWindow((48, 32), 0.0)
    result = evaluate(
        run / "checkpoint", data=DATA, tta=TtaSpec((1.0,), flip=True), sliding_window=window,
        save=False,
    )  # fmt: skip
    np.testing.assert_array_equal(result.confusion, _tables(decide))
    assert (result.confusion != evaluate(run / "checkpoint", data=DATA, save=False).confusion).any()


def test_training_logs_the_mean_over_classes(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = max(line["mean_iou"] for line in lines)
    assert best == pytest.approx(evaluate(run / "checkpoint", data=DATA, save=False).mean_iou)


def test_parity_counts_decisions_and_names_the_class_that_is_wrong(
    run: Path, tmp_path: Path
) -> None:
    reference, artifact = load_checkpoint(run / "checkpoint"), load_artifact(run / "onnx-fp32")
    found = compare_folders(artifact, reference, data=DATA, num_images=2)
    assert found.passed
    assert list(found.class_flip_rate) == [n for each in CLASSES for n in (f"not {each}", each)]
    assert found.cases[0]["num_pixels"] == 2 * 5 * 48 * 64
    state = load_module(reference).state_dict()
    for key in state:
        if "low_classifier" in key or "high_classifier" in key:
            state[key][2] *= -1  # Every triangle becomes none, and the reverse.
    other = save_checkpoint(
        tmp_path / "checkpoint", state, model=MODEL, task=Task.MULTILABEL, classes=CLASSES,
        preprocess=PreprocessSpec(),
    )  # fmt: skip
    rules = {each.rule for each in compare_folders(artifact, other, data=DATA).failures}
    wrong = {rule for rule in rules if rule.startswith("class_flip_rate")}
    assert wrong
    assert wrong <= {"class_flip_rate:triangle", "class_flip_rate:not triangle"}
    assert "hard_flip_rate" in rules


def test_labels_are_no_output_of_a_multilabel_model(run: Path) -> None:
    io = IoContract(output=OutputKind.LABELS)
    with pytest.raises(UnsupportedTargetError, match="not one label map"):
        export_and_verify(run / "checkpoint", ["onnx-fp32"], run, io=io, data=DATA)


def test_bench_predict_and_report_finish_the_run(run: Path, tmp_path: Path) -> None:
    (result,) = bench([run / "onnx-fp32"], seconds=0.1, warmup_s=0.02)
    assert result.target == "onnx-fp32"
    sample = open_dataset(DATA)[0]
    Image.fromarray(sample.image).save(tmp_path / "photo.png")
    (written,) = predict(run / "onnx-fp32", [tmp_path / "photo.png"], tmp_path / "out")
    assert Path(written.mask) == tmp_path / "out" / "photo"
    with segdeploy.open(run / "checkpoint") as model:
        expected = model.predict(sample.image).labels
    assert sorted(p.name for p in Path(written.mask).iterdir()) == [
        f"{k:02d}_{name}.png" for k, name in enumerate(CLASSES)
    ]
    for k, name in enumerate(CLASSES):
        mask = np.asarray(Image.open(tmp_path / "out" / "photo" / f"{k:02d}_{name}.png"))
        assert (mask != expected[k] * 255).mean() < 1e-3
        assert written.classes.get(name, 0) == pytest.approx((mask > 0).mean())
    assert np.asarray(Image.open(written.overlay)).shape == sample.image.shape
    evaluate(run / "onnx-fp32", data=DATA)
    assert "onnx-fp32" in report(run).read_text(encoding="utf-8")
