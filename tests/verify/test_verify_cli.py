"""The command: one JSON document on stdout, exit 1 for a failed check, 2 for bad input."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from segdeploy.cli import verify as _command
from segdeploy.cli.app import run_app
from segdeploy.core.results import ParityReport

assert _command  # Imported to register the command.
FIELDS = {
    "passed", "target", "reference", "parent", "flip_rate", "hard_flip_rate", "class_flip_rate",
    "max_abs", "failures",
}  # fmt: skip


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["segdeploy", "verify", *arguments])
    return run_app()


def test_json_holds_the_promised_fields(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, str(run.export().path), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= FIELDS
    assert document["passed"] is True


def test_a_failure_exits_1_with_a_complete_document(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_head(model: Any) -> None:
        model.head.bias[1] = float("inf")

    assert _call(monkeypatch, str(run.export(break_head).path), "--json") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["passed"] is False
    assert {"rule", "limit", "value"} == document["failures"][0].keys()
    assert "differs from its reference" in captured.err


def test_people_see_the_verdict(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, str(run.export().path)) == 0
    assert "passed" in capsys.readouterr().out
    parent = run.export(name="parent")
    artifact = run.export(parent=parent, io=None, name="child")
    assert _call(monkeypatch, str(artifact.path)) == 0
    assert "parent" in capsys.readouterr().out


def test_bad_input_exits_2(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, str(run.checkpoint.path), "--json") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["kind"] == "ArtifactError"
    assert "is a checkpoint" in captured.err


def test_a_report_without_evidence_renders(capsys: pytest.CaptureFixture[str]) -> None:
    report = ParityReport(
        target="onnx-int8", reference="r", parent=None, num_pixels=0, flip_rate=1.0,
        hard_flip_rate=1.0, excusable_flip_rate=0.0, certified_rate=None,
        class_flip_rate={"[b]a": None}, max_abs=None, max_deviation=None, snr_db=None, cosine=None,
        noise_floor=1e-5, margin_tolerance=0.1, hops={"parent": {"error": "[x] gone"}},
    )  # fmt: skip
    _command._render(report)
    assert "gone" in capsys.readouterr().out
