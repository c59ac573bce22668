"""The lint against the real parsers, verdict by verdict; and what a finding tells."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import UnknownNameError
from segdeploy.core.folder import Checkpoint
from segdeploy.graph.lint import RULES, Level, lint_graph

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "lint_agreement.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint_agreement", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _disagreements(found: dict[str, list[dict[str, object]]]) -> list[tuple[object, ...]]:
    return [
        (row["graph"], row["taken"], row["rules"], row["reason"])
        for row in found["rows"]
        if not row["agrees"]
    ]


def test_it_agrees_with_nvidias_parser_on_every_graph(
    program: ModuleType, tensorrt_cpu: Path, tiny_checkpoint: Checkpoint
) -> None:
    cases = program.made_cases() + program.exported_cases(tiny_checkpoint.path)
    found = program.compare("tensorrt", cases, str(tensorrt_cpu))
    assert _disagreements(found) == []
    taken = [row["taken"] for row in found["rows"]]
    assert len(taken) >= 80
    assert 35 < sum(taken) < len(taken) - 35


def test_it_agrees_with_onnx_runtime_on_every_graph_made_by_hand(program: ModuleType) -> None:
    assert _disagreements(program.compare("onnxruntime", program.made_cases())) == []


def test_it_agrees_with_openvino_on_every_graph_made_by_hand(program: ModuleType) -> None:
    pytest.importorskip("openvino")
    assert _disagreements(program.compare("openvino", program.made_cases())) == []


def _rules(program: ModuleType, name: str, runtime: str = "tensorrt") -> dict[str, Level]:
    model = next(case.model for case in program.made_cases() if case.name == name)
    return {finding.rule: finding.level for finding in lint_graph(model, runtime)}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("qdq zero point 3", "zero-point"),
        ("qdq convolution, int32 bias", "int32-bias"),
        ("uint8 image, transpose first", "uint8-operator"),
        ("uint8 inside", "uint8-intermediate"),
        ("uint16 labels", "data-type"),
        ("resize antialias", "resize-antialias"),
        ("resize half_pixel_symmetric", "resize-coordinates"),
        ("dynamic size", "dynamic-without-profile"),
        ("reshape by an input", "size-from-values"),
        ("if with an unknown operator", "operator-unknown"),
        ("convolution, data file missing", "external-data-missing"),
        ("mixed types", "invalid-graph"),
    ],
)
def test_each_kind_of_fault_has_its_own_rule(program: ModuleType, name: str, rule: str) -> None:
    """A right verdict for a wrong reason would send people to the wrong place."""
    assert [r for r, level in _rules(program, name).items() if level == Level.ERROR] == [rule]


def test_nan_weights_are_warned_of_though_every_parser_takes_them(program: ModuleType) -> None:
    assert _rules(program, "convolution, NaN weights") == {"weight-not-finite": Level.WARNING}


def test_a_finding_names_node_operator_and_module(program: ModuleType) -> None:
    model = next(c.model for c in program.made_cases() if c.name == "qdq convolution, int32 bias")
    (finding,) = lint_graph(model, "tensorrt")
    assert (finding.node, finding.op) == ("bias", "DequantizeLinear")
    assert finding.module == "features.0"
    assert "QuantizeBias" in finding.cure


def test_a_node_without_weights_is_placed_by_the_nearest_before_it() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "module.head.2.weight")
    nodes = [
        helper.make_node("Conv", ["x", "module.head.2.weight"], ["c"], name="node_conv2d_3"),
        helper.make_node("Relu", ["c"], ["r"], name="node_relu"),
        helper.make_node("Foo", ["r"], ["y"], name="n0"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [value("y", TensorProto.FLOAT, None)],
        [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (finding,) = [f for f in lint_graph(model, "tensorrt") if f.rule == "operator-unknown"]
    assert finding.module == "head.2"
    scopes = model.graph.node[2].metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'tail', 'tail.act', 'foo']"
    (finding,) = [f for f in lint_graph(model, "tensorrt") if f.rule == "operator-unknown"]
    assert finding.module == "tail.act"


def test_external_data_that_is_there_is_no_finding(program: ModuleType, tmp_path: Path) -> None:
    model = next(
        c.model for c in program.made_cases() if c.name == "convolution, data file missing"
    )
    assert lint_graph(model, "tensorrt", folder=tmp_path)
    (tmp_path / "not_there.bin").write_bytes(bytes(4 * 3 * 9 * 4))
    assert lint_graph(model, "tensorrt", folder=tmp_path) == []


def test_a_node_that_lost_its_inputs_is_a_finding_for_every_runtime(program: ModuleType) -> None:
    for case in program.made_cases():
        broken = onnx.ModelProto.FromString(case.model.SerializeToString())
        for node in broken.graph.node:
            del node.input[:]
        for runtime in RULES:
            found = lint_graph(broken, runtime)
            assert isinstance(found, list)
            if case.name.startswith("qdq"):
                assert {finding.rule for finding in found} == {"invalid-graph"}


def test_every_table_has_rules_and_an_unknown_runtime_is_named() -> None:
    assert all(len(RULES.get(name)) > 0 for name in RULES)
    with pytest.raises(UnknownNameError, match="tensort"):
        lint_graph(onnx.ModelProto(), "tensort")


@pytest.mark.parametrize(("runtime", "level"), [("litert", Level.ERROR), ("coreml", Level.WARNING)])
def test_ends_that_a_mobile_format_has_not(program: ModuleType, runtime: str, level: Level) -> None:
    assert _rules(program, "uint16 labels", runtime) == {"data-type": level}
    assert _rules(program, "hard swish", runtime) == {}
