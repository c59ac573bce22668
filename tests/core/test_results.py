"""Results keep evidence; their derived numbers agree with torchmetrics and NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segdeploy.core.errors import ArtifactError
from segdeploy.core.results import BenchResult, EvalResult, Failure, ParityReport, read_result


def _evaluated(label: np.ndarray, prediction: np.ndarray, classes: int) -> EvalResult:
    confusion = np.zeros((classes, classes), np.int64)
    for truth, found in zip(label.ravel(), prediction.ravel(), strict=True):
        if truth != 255:
            confusion[truth, found] += 1
    names = tuple(f"class {k}" for k in range(classes))
    return EvalResult(target="t", data="d", classes=names, confusion=confusion, num_images=3)


def _bench(samples: list[float], batch_size: int = 2) -> BenchResult:
    return BenchResult(
        target="onnx-fp32",
        path="run/onnx-fp32",
        samples_ms=samples,
        batch_size=batch_size,
        input_shape=(batch_size, 3, 64, 96),
        peak_memory_mib=None,
        environment={"cpu": "x"},
    )


def test_scores_equal_torchmetrics_where_every_class_is_labelled() -> None:
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_jaccard_index,
    )

    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (3, 20, 30))
    label[:, :2] = 255
    prediction = np.where(rng.random(label.shape) < 0.6, label % 255, rng.integers(0, 5))
    prediction[label == 255] = 1
    result = _evaluated(label, prediction, 5)
    truth, found = torch.from_numpy(label), torch.from_numpy(prediction)
    iou = multiclass_jaccard_index(found, truth, 5, average=None, ignore_index=255)
    accuracy = multiclass_accuracy(found, truth, 5, average=None, ignore_index=255)
    overall = multiclass_accuracy(found, truth, 5, average="micro", ignore_index=255)
    np.testing.assert_allclose(list(map(float, _values(result.class_iou))), iou, rtol=1e-6)
    np.testing.assert_allclose(list(map(float, _values(result.class_accuracy))), accuracy)
    assert result.mean_iou == pytest.approx(float(iou.mean()))
    assert result.pixel_accuracy == pytest.approx(float(overall))
    assert result.absent_classes == []


def _values(scores: dict[str, float | None]) -> list[float]:
    assert None not in scores.values()
    return [v for v in scores.values() if v is not None]


def test_absent_classes_are_listed_and_not_averaged_even_if_predicted() -> None:
    label = np.array([[0, 0, 2, 2]])
    prediction = np.array([[0, 1, 2, 2]])
    result = _evaluated(label, prediction, 4)
    assert result.class_iou == {"class 0": 0.5, "class 1": None, "class 2": 1.0, "class 3": None}
    assert result.class_accuracy["class 1"] is None
    assert result.absent_classes == ["class 1", "class 3"]
    assert result.mean_iou == 0.75
    assert result.pixel_accuracy == 0.75


def test_without_a_labelled_pixel_there_is_no_score() -> None:
    result = _evaluated(np.full((2, 2), 255), np.zeros((2, 2), int), 2)
    assert result.mean_iou is None
    assert result.pixel_accuracy is None
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["mean_iou"] is None


def test_an_evaluation_reads_back_from_its_document() -> None:
    rng = np.random.default_rng(1)
    result = _evaluated(rng.integers(0, 3, (4, 9)), rng.integers(0, 3, (4, 9)), 3)
    document = json.loads(json.dumps(result.to_dict()))
    assert {
        "mean_iou", "pixel_accuracy", "class_iou", "confusion", "num_images",
    } <= set(document)  # fmt: skip
    found = EvalResult.from_dict(document)
    np.testing.assert_array_equal(found.confusion, result.confusion)
    assert found.confusion.dtype == np.int64
    assert found.to_dict() == result.to_dict()


@pytest.mark.parametrize(
    ("count", "p90", "p99"), [(1, 0, 0), (9, 0, 0), (10, 1, 0), (99, 1, 0), (100, 1, 1)]
)
def test_a_percentile_is_null_until_a_sample_can_lie_above_it(
    count: int, p90: bool, p99: bool
) -> None:
    samples = np.random.default_rng(0).permutation(count).astype(float) + 1
    latency = _bench(samples.tolist()).latency_ms
    assert latency["p50"] == np.median(samples)
    assert latency["mean"] == samples.mean()
    assert latency["min"] == 1
    assert latency["p90"] == (np.percentile(samples, 90) if p90 else None)
    assert latency["p99"] == (np.percentile(samples, 99) if p99 else None)


def test_throughput_counts_images_not_batches_and_needs_samples() -> None:
    assert _bench([10.0, 20.0, 90.0], batch_size=4).throughput_img_s == 200
    empty = _bench([])
    assert empty.throughput_img_s is None
    assert set(empty.latency_ms.values()) == {None}


def test_a_bench_reads_back_from_its_document() -> None:
    result = _bench([1.5, 2.5])
    document = json.loads(json.dumps(result.to_dict()))
    assert {"p50", "p90", "p99", "mean", "min"} == set(document["latency_ms"])
    assert BenchResult.from_dict(document) == result


def test_a_report_passes_if_and_only_if_no_rule_is_broken() -> None:
    def report(failures: list[Failure]) -> ParityReport:
        return ParityReport(
            target="onnx-int8", reference="r", parent=None, num_pixels=10, flip_rate=0.1,
            hard_flip_rate=0.0, excusable_flip_rate=0.1, certified_rate=None,
            class_flip_rate={"road": None}, max_abs=None, max_deviation=None, snr_db=None,
            cosine=None, noise_floor=1e-6, margin_tolerance=1e-5, failures=failures,
        )  # fmt: skip

    good, bad = report([]), report([Failure("hard_flip_rate", 0.0, 0.5)])
    assert good
    assert good.passed
    assert not bad
    document = json.loads(json.dumps(bad.to_dict(), allow_nan=False))
    assert document["passed"] is False
    assert document["failures"] == [{"rule": "hard_flip_rate", "limit": 0.0, "value": 0.5}]
    assert document["max_abs"] is None


def test_a_result_that_was_not_made_is_none(tmp_path: Path) -> None:
    assert read_result(tmp_path / "eval.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 200_000])
def test_a_damaged_result_is_an_artifact_error_that_names_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "eval.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"eval\.json") as caught:
        read_result(tmp_path / "eval.json")
    assert caught.value.hint
