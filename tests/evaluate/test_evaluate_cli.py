"""The command: the promised fields, and nothing else on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segdeploy.cli import evaluate as _command
from segdeploy.cli.app import run_app
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.zoo import create_model, save_checkpoint

assert _command  # Imported to register the command.


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint"
    save_checkpoint(
        path, create_model("lraspp_mobilenet_v3_small", 1), model="lraspp_mobilenet_v3_small",
        task=Task.BINARY, classes=("[object]",), preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return path


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["segdeploy", "evaluate", *arguments])
    return run_app()


def test_json_holds_the_promised_fields(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(checkpoint), "--data", "synthetic_binary:48x64:4", "--json")
    assert _call(monkeypatch, *arguments) == 0
    document = json.loads(capsys.readouterr().out)
    fields = {"mean_iou", "pixel_accuracy", "class_iou", "confusion", "num_images"}
    assert document.keys() >= fields
    more = {"mean_iou_ci", "mean_accuracy", "mean_dice", "frequency_weighted_iou", "boundary_iou"}
    assert document.keys() >= more
    for name in ("foreground_iou", "foreground_dice", "mae", "max_f"):
        assert 0 <= document[name] <= 1
    assert document["boundary_iou"] is None
    assert document["num_images"] == 1
    assert (checkpoint / "eval.json").is_file()


def test_people_see_every_class(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(checkpoint), "--data", "synthetic_binary:48x64:4", "--no-save")
    assert _call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "[object]" in out
    assert "boundary" not in out
    assert all(word in out for word in ("mean Dice", "frequency-weighted", "MAE", "max F"))
    assert not (checkpoint / "eval.json").exists()


def test_outlines_and_the_interval_are_shown(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(checkpoint), "--data", "synthetic_binary:48x64:8", "--no-save", "--boundary")
    assert _call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert "boundary F" in out
    assert "95 % interval" in out
    assert _call(monkeypatch, *arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["class_boundary_f"]) == ["background", "[object]"]
    low, high = document["mean_iou_ci"]
    assert low <= document["mean_iou"] <= high
    for name, (low, high) in document["class_iou_ci"].items():
        assert low <= document["class_iou"][name] <= high
        assert f"{100 * low:.2f}-{100 * high:.2f} %" in out
    assert f"worst images: {document['worst'][0]['name']}" in out


@pytest.mark.parametrize(
    "arguments",
    [("--data", "nowhere"), ("--data", "synthetic:48x64"), ("--data", "synthetic_binary:x"),
     ("--data", "synthetic_binary", "--split", "nowhere"),
     ("--data", "synthetic_binary", "--limit", "0"), ()],
)  # fmt: skip
def test_bad_input_exits_2(
    checkpoint: Path,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _call(monkeypatch, str(checkpoint), *arguments, "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
    assert not (checkpoint / "eval.json").exists()
