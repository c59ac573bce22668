"""Rules that honest rounding must pass and planted faults must fail, on made-up logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.target import Precision
from segdeploy.core.task import Task
from segdeploy.metrics import FlipCount
from segdeploy.verify import verify
from segdeploy.verify.cases import Case
from segdeploy.verify.compare import CaseCount
from segdeploy.verify.confidence import ConfidenceCount
from segdeploy.verify.judge import find_tolerance, judge

NAMES = ("a", "b", "c", "d")
Logits = NDArray[np.float32]


def _nearly_constant_logits() -> Logits:
    """One class wins everywhere by a wide margin, and logits hardly vary over the pixels."""
    rng = np.random.default_rng(0)
    base = np.array([1.5, -0.5, -0.31, -0.82]).reshape(1, 4, 1, 1)
    return (base + 1e-3 * rng.standard_normal((1, 4, 64, 64))).astype(np.float32)


def _rules(reference: Logits, candidate: Logits, precision: Precision) -> set[str]:
    noise_floor = 1.2e-7  # Gauge-free, of one fp32 rounding of logits up to 1.5.
    tolerance = find_tolerance(precision, noise_floor, 2.0)
    count = FlipCount(Task.MULTICLASS, 4, tolerance)
    count.update(reference, candidate)
    counted = CaseCount(Case("images", "made up", lambda: iter(())), count)
    failures = judge(count, [counted], precision, noise_floor, NAMES, trained=True)
    return {failure.rule.split(":")[0] for failure in failures}


def test_honest_half_rounding_of_nearly_constant_logits_passes() -> None:
    reference = _nearly_constant_logits()
    assert _rules(reference, reference.astype(np.float16).astype(np.float32), Precision.FP16) == (
        set()
    )


def test_honest_byte_rounding_of_nearly_constant_logits_passes() -> None:
    reference = _nearly_constant_logits()
    step = 1.6e-3
    assert _rules(reference, np.rint(reference / step) * np.float32(step), Precision.INT8) == set()


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.INT8])
def test_swapped_rare_classes_of_nearly_constant_logits_fail(precision: Precision) -> None:
    reference = _nearly_constant_logits()
    assert "channel_snr_db" in _rules(reference, reference[:, [0, 2, 1, 3]], precision)


def _confidence(logits: Logits, task: Task) -> NDArray[np.float64]:
    if task is Task.BINARY:
        return np.asarray(expit(np.abs(logits[:, 0].astype(np.float64))))
    return np.asarray(softmax(logits.astype(np.float64), axis=1).max(axis=1))


@pytest.mark.parametrize(("task", "channels"), [(Task.MULTICLASS, 5), (Task.BINARY, 1)])
def test_confidence_errors_are_those_of_a_plain_softmax(task: Task, channels: int) -> None:
    rng = np.random.default_rng(1)
    logits = (3 * rng.standard_normal((2, channels, 70, 9))).astype(np.float32)
    labels = (logits[:, 0] > 0) if task is Task.BINARY else logits.argmax(1)
    offset = rng.uniform(-0.02, 0.02, labels.shape)
    given = np.clip(_confidence(logits, task) + offset, 0, 1)
    expected = np.abs(given - _confidence(logits, task))
    labels = labels.astype(np.uint8)
    labels[0, 0, :4] = 9  # Flipped: its probability is another's.
    given[0, 0, :4] = 0.123
    given[1, 2, 3] = np.nan
    expected[0, 0, :4] = expected[1, 2, 3] = 0
    count = ConfidenceCount()
    count.update(logits, task, labels, given.astype(np.float32))
    assert (count.num_bad, count.num_pixels) == (1, 2 * 70 * 9 - 5)
    assert count.max_error == pytest.approx(expected.max(), abs=1e-6)
    assert count.rms_error == pytest.approx(
        np.sqrt((expected**2).sum() / count.num_pixels), abs=1e-6
    )


def test_a_reference_that_is_not_finite_gives_no_confidence() -> None:
    logits = np.zeros((1, 3, 2, 2), np.float32)
    logits[0, 0, 0] = np.inf
    logits[0, 1, 1] = np.nan
    count = ConfidenceCount()
    count.update(logits, Task.MULTICLASS, np.zeros((1, 2, 2)), np.ones((1, 2, 2), np.float32))
    assert (count.num_pixels, count.num_bad, count.rms_error) == (0, 0, 0.0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_confidence_that_is_always_one_fails(
    run: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdeploy.backends.torchscript import TorchScriptSession

    honest = TorchScriptSession.run

    def overconfident(self: TorchScriptSession, batch: Any) -> Any:
        found = honest(self, batch)
        if "confidence" in found:
            found["confidence"] = np.ones_like(found["confidence"])
        return found

    io = IoContract(output=OutputKind.LABELS_CONFIDENCE)
    artifact = run.export(io=io, target=f"torchscript-{precision}")
    report = verify(artifact.path, data="synthetic:48x64")
    assert report, report.failures
    monkeypatch.setattr(TorchScriptSession, "run", overconfident)
    rules = {f.rule for f in verify(artifact.path, data="synthetic:48x64").failures}
    assert rules & {"confidence_rms_error", "confidence_max_error"}
