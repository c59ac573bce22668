from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import segdeploy.cli.lint
from segdeploy.cli.app import run_app
from segdeploy.core.folder import Checkpoint
from segdeploy.export import export

assert segdeploy.cli.lint  # Registers the command.


def _save(path: Path, operator: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="only")], "g",
        [value("x", kind, shape)],
        [value("y", kind, [] if operator == "Det" else shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["segdeploy", "lint", *map(str, arguments)])
    return run_app()


def test_a_clean_graph_is_exit_0_and_one_json_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _save(tmp_path / "m.onnx", "Relu", [1, 3, 32, 32])
    assert _run(monkeypatch, model, "--for", "tensorrt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"model": str(model), "runtime": "tensorrt", "findings": [], "passed": True}


def test_an_error_is_exit_1_and_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _save(tmp_path / "m.onnx", "Relu", ["N", 3, "H", "W"])
    assert _run(monkeypatch, model, "--for", "tensorrt") == 1
    shown = capsys.readouterr().out
    assert "dynamic-without-profile" in shown
    assert "--size" in shown
    assert _run(monkeypatch, model, "--for", "tensorrt", "--size", "64x96") == 0
    assert _run(monkeypatch, model, "--for", "tensorrt", "--size", "64x96..128x128") == 0
    assert _run(monkeypatch, model, "--for", "openvino") == 0
    found = _save(tmp_path / "d.onnx", "Det", [4, 4])
    capsys.readouterr()
    assert _run(monkeypatch, found, "--for", "openvino", "--json") == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["rule"], finding["level"]) == ("operator-unknown", "error")
    assert (finding["node"], finding["op"]) == ("only", "Det")


def test_a_given_size_takes_the_place_of_minus_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _save(tmp_path / "m.onnx", "Relu", [-1, 3, -1, -1])
    assert _run(monkeypatch, model, "--for", "tensorrt") == 1
    assert "dynamic-without-profile" in capsys.readouterr().out
    for runtime in ("tensorrt", "litert"):
        assert _run(monkeypatch, model, "--for", runtime, "--size", "64x96") == 0


def test_a_damaged_graph_is_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(_save(tmp_path / "m.onnx", "Relu", [1, 3, 32, 32]))
    model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"1234")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert _run(monkeypatch, tmp_path / "m.onnx", "--for", "tensorrt") == 2
    assert "The graph is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m.onnx", "--for", "tensort"), "There are no lint rules for 'tensort'"),
        (("absent.onnx", "--for", "tensorrt"), "There is no file or folder"),
        (("text.onnx", "--for", "tensorrt"), "is not an ONNX file"),
        (("m.onnx", "--for", "tensorrt", "--size", "big"), "is not a size"),
    ],
)
def test_bad_input_is_exit_2(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _save(tmp_path / "m.onnx", "Relu", [1, 3, 32, 32])
    (tmp_path / "text.onnx").write_text("hello")
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


def test_an_artifact_brings_its_own_size_and_other_payloads_are_refused(
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = export(tiny_checkpoint.path, ["onnx-fp32", "torchscript-fp32"], tmp_path, size=(64, 96))
    onnx_path, script_path = (outcome.path for outcome in made)
    assert _run(monkeypatch, onnx_path, "--for", "tensorrt") == 0
    assert _run(monkeypatch, onnx_path, "--for", "litert") == 0
    assert _run(monkeypatch, script_path, "--for", "tensorrt") == 2
    assert "only ONNX graphs are linted" in capsys.readouterr().err
    assert _run(monkeypatch, tiny_checkpoint.path, "--for", "tensorrt") == 2
