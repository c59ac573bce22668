"""Export, then verify; and the command around both."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segdeploy.cli.app import run_app
from segdeploy.core.folder import Checkpoint, load_artifact, mark_passed
from segdeploy.workflows.export_verified import export_and_verify

DATA = "synthetic:64x80"


class _Verdict:
    """Stands for the verify stage: fails torchscript, and writes down what it was asked."""

    hint = ""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, artifact: Path, *, data: str | None = None, device: str = "cpu") -> _Verdict:
        assert device == "cpu"
        self.asked.append((artifact.name, data))
        self.passed = not artifact.name.startswith("torchscript")
        mark_passed(load_artifact(artifact), self.passed)
        return self


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> _Verdict:
    found = _Verdict()
    monkeypatch.setattr("segdeploy.verify.verify", found)
    return found


def _cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    import segdeploy.cli.export  # noqa: F401  registers the command

    monkeypatch.setattr(sys, "argv", ["segdeploy", *map(str, arguments)])
    return run_app()


def test_one_failure_does_not_stop_the_others_and_is_tried_again(
    checkpoint: Checkpoint, tmp_path: Path, verdict: _Verdict
) -> None:
    targets = ["torchscript-fp32", "onnx-fp16"]
    first = export_and_verify(checkpoint.path, targets, tmp_path, calibration=DATA)
    assert [(e.outcome.target, e.passed) for e in first] == [
        ("torchscript-fp32", False), ("onnx-fp16", True), ("onnx-fp32", True),
    ]  # fmt: skip
    assert {data for _, data in verdict.asked} == {DATA}
    verdict.asked.clear()
    again = export_and_verify(checkpoint.path, targets, tmp_path, calibration=DATA)
    assert [e.passed for e in again] == [False, True, True]
    assert verdict.asked == [("torchscript-fp32", DATA)]
    verdict.asked.clear()
    export_and_verify(checkpoint.path, ["onnx-fp32"], tmp_path, data="synthetic:32x32")
    assert verdict.asked == [("onnx-fp32", "synthetic:32x32")]


def test_command_prints_one_document_and_exits_1_on_a_failed_check(
    checkpoint: Checkpoint,
    tmp_path: Path,
    verdict: _Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = _cli(
        monkeypatch, "export", checkpoint.path, "--target", "torchscript-fp32",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 1
    document = json.loads(captured.out)
    assert [(d["target"], d["passed"], d["reused"]) for d in document] == [
        ("torchscript-fp32", False, False)
    ]
    assert {"path", "seconds", "size_mib"} <= set(document[0])
    assert "failed verification" in captured.err
    assert len(verdict.asked) == 1


def test_command_without_verification_exits_0(
    checkpoint: Checkpoint,
    tmp_path: Path,
    verdict: _Verdict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = _cli(
        monkeypatch, "export", checkpoint.path, "--target", "torchscript-fp32",
        "--out", tmp_path / "run", "--no-verify", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out)[0]["passed"] is None
    assert not verdict.asked


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "onnx-int8"], "--calibration"),
        (["--target", "onnx-fp32", "--size", "12"], "not a size"),
        (["--target", "onnx-fp32", "--size", "16x16"], "16x16"),
        (["--target", "onnx-int4"], "not a target"),
        (["--target", "onnx-fp32", "--output", "masks"], "masks"),
        ([], "--target"),
    ],
)
def test_command_exits_2_on_what_the_user_can_fix(
    arguments: list[str],
    says: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = _cli(
        monkeypatch, "export", checkpoint.path, *arguments, "--out", tmp_path / "run", "--json"
    )
    captured = capsys.readouterr()
    assert code == 2
    assert says in captured.err
    assert json.loads(captured.out)["error"]["exit_code"] == 2
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()
