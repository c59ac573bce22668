"""An activation beyond fp16, end to end: verify catches it and names the cure, which works."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from segdeploy.core.folder import load_artifact
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.fp16 import float32_nodes
from segdeploy.workflows.export_verified import VerifiedExport, export_and_verify
from segdeploy.zoo import save_checkpoint

LOUD = 6e4


@pytest.fixture
def loud_checkpoint(run: Any) -> Path:
    """The trained net with a map of 1e5 and more inside: one layer louder, the next one quieter."""
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        model.bn1.weight.mul_(LOUD)
        model.bn1.bias.mul_(LOUD)
        model.conv2.weight.div_(LOUD)
    own = run.checkpoint.manifest
    saved = save_checkpoint(
        run.checkpoint.path.parent / "loud", model, model="tiny", task=own.task,
        classes=own.classes, preprocess=PreprocessSpec(), design_size=own.design_size,
    )  # fmt: skip
    return Path(saved.path)


def _export(checkpoint: Path, out: Path, **options: Any) -> VerifiedExport:
    return export_and_verify(checkpoint, ["onnx-fp16"], out, data="synthetic:48x64:8", **options)[0]


def test_verify_names_the_cure_of_an_overflow_and_islands_are_it(
    loud_checkpoint: Path, tmp_path: Path
) -> None:
    without = _export(loud_checkpoint, tmp_path / "run")
    assert without.passed is False
    assert without.report is not None
    assert "finite" in {failure.rule for failure in without.report.failures}
    assert "--calibration" in without.report.hint
    written = json.loads((without.outcome.path / "parity.json").read_text())
    assert written["hint"] == without.report.hint
    key = load_artifact(without.outcome.path).manifest.build_key

    cured = _export(loud_checkpoint, tmp_path / "run", calibration="synthetic:48x64:8")
    assert cured.passed is True
    assert cured.report is not None
    assert cured.report.hint == ""
    manifest = load_artifact(cured.outcome.path).manifest
    assert manifest.build_key != key
    reasons = {i["node"]: i["reason"] for i in manifest.options["fp16"]["islands"]}
    graph = onnx.load(str(cured.outcome.path / "model.onnx"))
    assert {node.name for node in float32_nodes(graph)} == set(reasons)
    assert len(reasons) == 3  # The two layers around the loud map, and its activation.
    assert manifest.options["calibration"]["num_images"] == 8

    again = _export(loud_checkpoint, tmp_path / "run", calibration="synthetic:48x64:8")
    assert again.outcome.reused


def test_images_change_nothing_where_nothing_overflows(run: Any, tmp_path: Path) -> None:
    source = run.checkpoint.path
    plain = _export(source, tmp_path / "a").outcome.path
    seen = _export(source, tmp_path / "b", calibration="synthetic:48x64:8").outcome.path
    assert (plain / "model.onnx").read_bytes() == (seen / "model.onnx").read_bytes()
    before, after = load_artifact(plain).manifest, load_artifact(seen).manifest
    assert before.options == {"size": "dynamic"}
    assert after.options["fp16"]["islands"] == []
    assert after.options["calibration"]["num_images"] == 8
    assert after.digest == before.digest  # The same artifact,
    assert after.build_key != before.build_key  # by other work: it was searched.
