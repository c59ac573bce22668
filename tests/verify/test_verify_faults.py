"""Planted faults must fail, unmodified exports must pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from segdeploy.backends.torchscript import TorchScriptSession
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import load_artifact
from segdeploy.core.results import ParityReport, read_result
from segdeploy.verify import verify

DATA = "synthetic:48x64"
Plant = Callable[[Any], object]


def _rules(report: ParityReport) -> set[str]:
    return {f.rule.split(":")[0] for f in report.failures}


def swap_classes(model: Any) -> None:
    order = [0, 2, 1, 3, 4]
    model.head.weight.copy_(model.head.weight[order])
    model.head.bias.copy_(model.head.bias[order])


def double_batchnorm_scale(model: Any) -> None:
    model.bn2.weight[:] *= 2


def double_batchnorm_variance(model: Any) -> None:
    model.bn1.running_var *= 2


def double_one_batchnorm_shift(model: Any) -> None:
    model.bn1.bias[3] *= 2


def erase_thin_class(model: Any) -> None:
    model.head.weight[4] = 0
    model.head.bias[4] = -100


def turn_sign(model: Any) -> None:
    model.head.weight.neg_()
    model.head.bias.neg_()


def make_nan(model: Any) -> None:
    model.head.bias[1] = float("nan")


def round_to_half(model: Any) -> None:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())


def quantize_weights(model: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            scale = layer.weight.abs().amax((1, 2, 3), keepdim=True) / 127
            layer.weight.copy_(torch.round(layer.weight / scale) * scale)


def test_an_unmodified_export_passes_and_says_so_on_disk(run: Any) -> None:
    artifact = run.export()
    report = verify(artifact.path)
    assert report, report.failures
    assert report.hard_flip_rate == 0
    assert report.certified_rate is not None
    assert report.certified_rate > 0.99
    assert load_artifact(artifact.path).manifest.passed is True
    assert read_result(artifact.path / "parity.json") == report.to_dict()
    assert {c["name"] for c in report.cases} == {"images", "2x97x130", "1x225x231"}
    assert report.reference.startswith("pytorch-fp32@")


@pytest.mark.parametrize(
    "plant",
    [
        swap_classes, double_batchnorm_scale, double_batchnorm_variance,
        double_one_batchnorm_shift, erase_thin_class, turn_sign, make_nan,
    ],
)  # fmt: skip
def test_every_planted_fault_fails_at_fp32(run: Any, plant: Plant) -> None:
    artifact = run.export(plant)
    assert not verify(artifact.path)
    assert load_artifact(artifact.path).manifest.passed is False


@pytest.mark.parametrize("plant", [swap_classes, erase_thin_class, turn_sign, make_nan])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_gross_faults_fail_at_coarse_precisions(run: Any, plant: Plant, precision: str) -> None:
    artifact = run.export(plant, target=f"torchscript-{precision}")
    assert not verify(artifact.path, data=DATA)


@pytest.mark.parametrize(("plant", "target"), [(round_to_half, "fp16"), (quantize_weights, "int8")])
def test_honest_rounding_passes(run: Any, plant: Plant, target: str) -> None:
    artifact = run.export(plant, target=f"torchscript-{target}")
    report = verify(artifact.path, data=DATA)
    assert report, report.failures
    assert report.max_abs is not None
    assert report.max_abs > 0


def test_half_rounding_does_not_pass_as_fp32(run: Any) -> None:
    assert not verify(run.export(round_to_half).path)


def test_a_thin_class_names_itself(run: Any) -> None:
    artifact = run.export(erase_thin_class, target="torchscript-int8")
    report = verify(artifact.path, data=DATA)
    assert "class_flip_rate:bar" in {f.rule for f in report.failures}
    assert report.class_flip_rate["bar"] == 1
    assert report.flip_rate < 0.2


def test_a_binary_model_is_judged_by_its_sign(binary_run: Any) -> None:
    assert verify(binary_run.export().path)
    for target in ("torchscript-fp32", "torchscript-fp16", "torchscript-int8"):
        artifact = binary_run.export(turn_sign, target=target)
        report = verify(artifact.path, data="synthetic_binary:48x64")
        assert not report
        assert report.flip_rate > 0.99
        assert list(report.class_flip_rate) == ["background", "object"]


def test_a_labels_contract_is_judged_by_the_references_margins(run: Any) -> None:
    io = IoContract(output=OutputKind.LABELS)
    report = verify(run.export(io=io).path)
    assert report, report.failures
    assert report.max_abs is None
    assert report.certified_rate is None
    assert not verify(run.export(swap_classes, io=io).path)


def test_confidence_is_checked_to_be_a_probability(run: Any) -> None:
    io = IoContract(output=OutputKind.LABELS_CONFIDENCE)
    assert verify(run.export(io=io).path)
    assert "confidence_range" in _rules(verify(run.export(make_nan, io=io).path))


def test_an_image_contract_is_fed_uint8(run: Any) -> None:
    io = IoContract(input=InputKind.IMAGE)
    report = verify(run.export(io=io).path)
    assert report, report.failures
    wrong = run.checkpoint.manifest.preprocess.__class__(mean=(0.0, 0.0, 0.0))
    assert not verify(run.export(preprocess=wrong).path)


def test_a_static_artifact_runs_at_its_own_size_only_and_with_more_than_one_image(run: Any) -> None:
    report = verify(run.export(size=(40, 56)).path)
    assert report, report.failures
    assert [c["shapes"] for c in report.cases] == [["1x40x56"], ["2x40x56"]]


def test_a_size_that_the_artifact_cannot_run_fails(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TorchScriptSession.run

    def refuse_odd(self: TorchScriptSession, batch: Any) -> Any:
        if batch.shape[-1] % 2:
            raise ArtifactError("odd width")
        return honest(self, batch)

    monkeypatch.setattr(TorchScriptSession, "run", refuse_odd)
    report = verify(run.export().path)
    assert "runs" in _rules(report)
    odd = next(c for c in report.cases if c["name"] == "1x225x231")
    assert odd["flip_rate"] == 1
    assert "odd width" in odd["problems"][0]


def test_a_fault_at_one_size_does_not_drown_in_the_others(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TorchScriptSession.run

    def shift_pairs(self: TorchScriptSession, batch: Any) -> Any:
        found = honest(self, batch)
        return found if len(batch) == 1 else {k: v[::-1] for k, v in found.items()}

    monkeypatch.setattr(TorchScriptSession, "run", shift_pairs)
    artifact = run.export(target="torchscript-int8")
    assert "hard_flip_rate" in _rules(verify(artifact.path, data="synthetic:256x320", num_images=8))


def test_a_fixed_batch_is_filled(run: Any) -> None:
    spec = run.export().manifest.inputs[0]
    artifact = run.export(inputs=(type(spec)(spec.name, spec.dtype, (3, *spec.shape[1:])),))
    report = verify(artifact.path)
    assert report, report.failures
    assert {c["shapes"][0][0] for c in report.cases} == {"3"}


def test_outputs_that_break_the_manifest_fail(run: Any) -> None:
    spec = run.export().manifest.outputs[0]
    artifact = run.export(outputs=(type(spec)("logits", "float16", spec.shape),))
    report = verify(artifact.path)
    assert _rules(report) >= {"output_contract"}
    assert report.flip_rate == 1
    assert report.max_abs is None


def test_untrained_weights_are_judged_by_the_noise_floor(untrained_run: Any) -> None:
    assert verify(untrained_run.export().path)
    report = verify(untrained_run.export(swap_classes).path)
    assert _rules(report) == {"deviation"}
    assert verify(untrained_run.export(round_to_half, target="torchscript-fp16").path)
    int8 = untrained_run.export(quantize_weights, target="torchscript-int8")
    assert verify(int8.path, data=DATA)
    noise = untrained_run.export(turn_sign, target="torchscript-int8")
    assert _rules(verify(noise.path, data=DATA)) == {"snr_db"}


def test_the_guilty_hop_shows(run: Any) -> None:
    parent = run.export(name="parent")
    child = run.export(swap_classes, parent=parent, target="torchscript-int8")
    hops = verify(child.path, data=DATA).hops
    assert hops["parent_to_reference"]["flip_rate"] < 1e-3
    assert hops["parent"]["flip_rate"] > 0.01


def test_the_report_holds_no_value_that_json_lacks(run: Any) -> None:
    report = verify(run.export(make_nan).path)
    assert "finite" in _rules(report)
    json.dumps(report.to_dict(), allow_nan=False)
