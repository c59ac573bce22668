"""The lint against the real parsers, verdict by verdict; and what a finding tells."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import ArtifactError, UnknownNameError
from segdeploy.core.folder import Checkpoint
from segdeploy.graph.lint import RULES, Level, lint_graph, microsoft_tables

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


def _conv(*nodes: onnx.NodeProto, size: int = 8, **stored: Any) -> onnx.ModelProto:
    """Return a convolution of x by w, after the nodes given; `size` is that of the image."""
    arrays = {"w": np.ones((4, 3, 1, 1), np.float32), **stored}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, [1, 3, size, size])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, name) for name, a in arrays.items() if a is not None],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _found(model: onnx.ModelProto, runtime: str, folder: Path | None = None) -> dict[str, Level]:
    return {f.rule: f.level for f in lint_graph(model, runtime, folder=folder)}


@pytest.mark.parametrize("runtime", list(RULES))
def test_weights_that_are_cut_short_are_an_error_that_says_damaged(runtime: str) -> None:
    short = _conv()
    short.graph.initializer[0].raw_data = short.graph.initializer[0].raw_data[:-8]
    absurd = _conv()
    absurd.graph.initializer[0].dims[:] = [2**40, 2**20, 3, 3]
    empty = _conv(k=np.asarray([1, 2]))
    empty.graph.initializer[1].ClearField("raw_data")
    for model in (short, absurd, empty):
        with pytest.raises(ArtifactError, match="damaged: the rule finite_weights ends in Value"):
            lint_graph(model, runtime)


@pytest.mark.parametrize("runtime", list(RULES))
def test_what_inference_refuses_is_a_finding_though_other_rules_stumble(runtime: str) -> None:
    no_output = helper.make_node("Constant", [], [], value_float=1.0)
    pool = helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], dilations=1)
    unknown_type, unknown_store = _conv(), _conv()
    unknown_type.graph.input[0].type.tensor_type.elem_type = 99
    unknown_store.graph.initializer[0].data_type = 99
    for model in (_conv(no_output), _conv(pool), unknown_type, unknown_store):
        assert _found(model, runtime)["invalid-graph"] == Level.ERROR


@pytest.mark.parametrize("runtime", ["tensorrt", "openvino"])
def test_an_attribute_that_is_no_text_names_the_rule_that_read_it(runtime: str) -> None:
    mode: dict[str, Any] = {"coordinate_transformation_mode": b"\xff\xfe"}
    resize = helper.make_node("Resize", ["x", "", "s"], ["r"], **mode)
    with pytest.raises(ArtifactError, match=r"damaged: the rule .* UnicodeDecodeError"):
        lint_graph(_conv(resize, s=np.ones(4, np.float32)), runtime)


def _save_outside(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    path = str(folder / "m.onnx")
    options: dict[str, Any] = {"location": "m.data", "size_threshold": 0}
    onnx.save(model, path, save_as_external_data=True, **options)
    return onnx.load(path, load_external_data=False)


def test_weights_in_another_file_are_judged_as_those_inside(tmp_path: Path) -> None:
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    large = np.ones((4, 3, 300, 300), np.float32)  # Above 1 MiB: read for the check of NaN only.
    large[0, 0, 0, 0] = np.nan
    outside = _save_outside(
        _conv(*pair, size=300, w=large, s=np.float32(0.1), z=np.int8(3)), tmp_path
    )
    assert all(t.data_location == TensorProto.EXTERNAL for t in outside.graph.initializer)
    assert _found(outside, "tensorrt", tmp_path) == {
        "zero-point": Level.ERROR, "weight-not-finite": Level.WARNING,
    }  # fmt: skip
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="damaged"):
        lint_graph(outside, "tensorrt", folder=tmp_path)


def test_sizes_in_another_file_are_known_to_shape_inference(tmp_path: Path) -> None:
    reshape = helper.make_node("Reshape", ["x", "k"], ["r"])
    for shape, expected in (([1, 3, 8, 8], {}), ([1] * 7 + [3, 64], {"rank": Level.ERROR})):
        outside = _save_outside(_conv(reshape, k=np.asarray(shape)), tmp_path)
        assert _found(outside, "tensorrt", tmp_path) == expected


def test_nan_in_a_constant_node_is_warned_of_and_an_infinite_bound_is_not() -> None:
    nan = np.full((4, 3, 1, 1), np.nan, np.float32)
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(nan))
    assert _found(_conv(node, w=None), "onnxruntime") == {"weight-not-finite": Level.WARNING}
    clip = helper.make_node("Clip", ["x", "low", "high"], ["c"])
    bounded = _conv(clip, low=np.float32(-1), high=np.float32(np.inf))
    assert _found(bounded, "onnxruntime") == {}


def test_a_function_of_the_model_is_judged_by_what_it_is_made_of() -> None:
    for body, rules in (("Relu", set()), ("Det", {"operator-unknown"})):
        model = _conv(helper.make_node("Block", ["x"], ["b"], domain="local"))
        opsets = [helper.make_opsetid("", 17)]
        inner = [helper.make_node(body, ["a"], ["b"])]
        model.functions.append(helper.make_function("local", "Block", ["a"], ["b"], inner, opsets))
        model.opset_import.append(helper.make_opsetid("local", 1))
        found = lint_graph(model, "tensorrt")
        assert {f.rule for f in found} == rules
        assert {f.op for f in found} <= {"Det"}


def test_a_size_of_minus_1_is_no_size() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[4, 4])
    model = _conv(pool, size=-1)
    model.graph.value_info.append(
        helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 3, -1, -1])
    )
    assert _found(model, "tensorrt") == {"dynamic-without-profile": Level.ERROR}
    assert lint_graph(model, "tensorrt", has_sizes=True) == []
    assert _found(model, "litert") == {"dynamic-size": Level.ERROR}


@pytest.mark.parametrize(
    ("operator", "refused"),
    [("Frob", {"openvino", "onnxruntime"}), ("Inverse", {"openvino"}), ("FusedConv", set())],
)
def test_operators_of_com_microsoft_are_those_that_exist(operator: str, refused: set[str]) -> None:
    model = _conv(helper.make_node(operator, ["x"], ["f"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert {r for r in ("openvino", "onnxruntime") if lint_graph(model, r)} == refused


def test_the_list_of_com_microsoft_is_onnx_runtimes_own() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    theirs = {s.name for s in state.get_all_operator_schema() if s.domain == "com.microsoft"}
    if importlib.metadata.version("onnxruntime").startswith("1.31."):
        assert theirs == microsoft_tables.ONNXRUNTIME
    assert microsoft_tables.OPENVINO <= microsoft_tables.ONNXRUNTIME


def test_every_table_has_rules_and_an_unknown_runtime_is_named() -> None:
    assert all(len(RULES.get(name)) > 0 for name in RULES)
    with pytest.raises(UnknownNameError, match="tensort"):
        lint_graph(onnx.ModelProto(), "tensort")


@pytest.mark.parametrize(("runtime", "level"), [("litert", Level.ERROR), ("coreml", Level.WARNING)])
def test_ends_that_a_mobile_format_has_not(program: ModuleType, runtime: str, level: Level) -> None:
    assert _rules(program, "uint16 labels", runtime) == {"data-type": level}
    assert _rules(program, "hard swish", runtime) == {}
