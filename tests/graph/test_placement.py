"""Policies placed in a graph that has every group: legality, records, and what the result computes.

The reference of structure is the finished graph itself: a node that a record calls int8 must read
nothing but DQ and feed nothing but Q.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.backends.openvino import compile_settings
from segdeploy.core.errors import ConfigError
from segdeploy.core.target import Precision
from segdeploy.graph.byte_kernels import use_byte_kernels
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.lint import lint_graph
from segdeploy.graph.node_groups import NodeGroups
from segdeploy.graph.placement import Placement, place_qdq
from segdeploy.graph.policy import CHOICES, Override, Policy, shipped_policy
from segdeploy.graph.proto import consumers, producers
from segdeploy.graph.qdq import insert_qdq
from segdeploy.graph.u8_activations import use_u8_activations
from tests.graph.builder import GraphBuilder

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]
JUDGES = Path(__file__).parents[2] / "benchmarks" / "lint_judges.py"
DEFAULT, ALL = shipped_policy("default"), shipped_policy("all")


class _Builder(GraphBuilder):
    def conv(self, source: str, output: str, shape: tuple[int, ...], **attributes: Any) -> str:
        fan = int(np.prod(shape[1:]))
        weight = self.rng.standard_normal(shape) * (1.5 / np.sqrt(fan))
        op = attributes.pop("op", "Conv")
        bias = self.rng.standard_normal(shape[0] if op == "Conv" else shape[1]) * 0.1
        names = [self.store(f"{output}.w", weight), self.store(f"{output}.b", bias)]
        return self.add(op, [source, *names], output, **attributes)


def _closed(b: _Builder) -> onnx.ModelProto:
    sides: dict[str, list[Any]] = {"tensor": ["N", 3, 32, 48], "logits": ["N", 5, None, None]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sides.items()]
    graph = helper.make_graph(b.nodes, "main_graph", ends[:1], ends[1:], b.stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_every_group() -> onnx.ModelProto:
    b = _Builder()
    b.store("zero", 0.0)
    b.store("six", 6.0)
    b.store("spatial", [2, 3], np.int64)
    b.store("twice", [1, 1, 2, 2])
    b.store("rim", [0, 0, 0, 0, 0, 0, 0, 0], np.int64)
    stem = b.conv("tensor", "stem", (8, 3, 3, 3), pads=[1] * 4, strides=[2, 2])
    stem = b.add("Clip", [stem, "zero", "six"], "stem_act")
    deep = b.conv(stem, "deep", (8, 1, 3, 3), pads=[1] * 4, group=8)
    deep = b.add("HardSwish", [deep], "deep_act")
    vector = b.add("ReduceMean", [deep, "spatial"], "mean", keepdims=1)
    vector = b.add("Relu", [b.conv(vector, "fc1", (4, 8, 1, 1))], "fc1_act")
    vector = b.add("HardSigmoid", [b.conv(vector, "fc2", (8, 4, 1, 1))], "scale", alpha=1 / 6)
    gated = b.add("Mul", [vector, deep], "gated")
    project = b.conv(gated, "project", (8, 8, 1, 1))
    lifted = b.add("Add", [b.conv(deep, "thin", (8, 8, 1, 1)), stem], "lifted")
    joined = b.add("Add", [project, b.conv(lifted, "shortcut", (8, 8, 1, 1))], "sum")
    again = b.conv(joined, "again", (8, 8, 3, 3), pads=[1] * 4)
    joined = b.add("Relu", [b.add("Add", [again, joined], "sum2")], "sum2_act")
    mixed = b.conv(joined, "mixed", (8, 1, 3, 3), pads=[1] * 4, group=8)
    small = b.conv(mixed, "small", (8, 8, 3, 3), pads=[1] * 4)
    small = b.add("MaxPool", [small], "pool", kernel_shape=[2, 2], strides=[2, 2])
    small = b.add("Relu", [b.conv(small, "inner", (8, 8, 3, 3), pads=[1] * 4)], "inner_act")
    up = b.add("Resize", [small, "", "twice"], "up", mode="linear")
    up = b.add("Pad", [up, "rim"], "padded")
    other = b.conv(small, "grow", (8, 8, 2, 2), op="ConvTranspose", strides=[2, 2])
    other = b.add("LeakyRelu", [other], "grow_act", alpha=0.1)
    both = b.add("Concat", [up, other, joined], "both", axis=1)
    head = b.add("Relu", [b.conv(both, "head", (8, 24, 3, 3), pads=[1] * 4)], "head_act")
    late = b.conv(head, "late", (8, 1, 3, 3), pads=[1] * 4, group=8)
    head = b.conv(late, "squeeze", (8, 8, 1, 1))
    logits = b.conv(head, "coarse", (5, 8, 1, 1))
    b.add("Resize", [logits, "", "twice"], "logits", mode="linear")
    return _closed(b)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return make_every_group()


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((1, 3, 32, 48)).astype(np.float32) for _ in range(3)]


@pytest.fixture(scope="module")
def quantize(
    model: onnx.ModelProto, images: list[NDArray[np.float32]]
) -> Callable[[Policy], tuple[Placement, onnx.ModelProto]]:
    tensors = [o for n in model.graph.node for o in n.output if o != "logits"]
    ranges = calibrate(model, ["tensor", *tensors], lambda: images)

    def made(policy: Policy) -> tuple[Placement, onnx.ModelProto]:
        placement = place_qdq(model, policy)
        return placement, insert_qdq(model, placement, ranges)

    return made


def test_the_graph_has_every_group_and_each_is_found_by_structure(model: onnx.ModelProto) -> None:
    groups = NodeGroups(model.graph).by_node
    assert set(groups.values()) == set(CHOICES)
    wanted = {
        "stem": "first_convolution", "deep": "stem_depthwise", "mixed": "stem",
        "thin": "stem_residual", "shortcut": "stem", "project": "stem", "fc1": "pooled",
        "fc2": "pooled", "late": "depthwise",
        "squeeze": "pointwise", "gated": "gate", "sum": "residual", "sum2": "residual_relu",
        "again": "stem", "inner": "convolution", "grow": "transposed",
        "grow_act": "activation", "pool": "max_pool",
        "both": "concat", "padded": "resize", "coarse": "classifier", "deep_act": "hard_swish",
    }  # fmt: skip
    assert {name: groups[f"n_{name}"] for name in wanted} == wanted


def _activate(b: _Builder, kind: str, x: str) -> str:
    if kind in {"Sigmoid", "HardSigmoid"}:  # SiLU; HardSwish in two parts, and below in four.
        return b.add("Mul", [x, b.add(kind, [x], "gate")], "act")
    if kind == "Clip":
        bounds = [b.store("low", 0.0), b.store("high", 6.0)]
        gate = b.add("Clip", [b.add("Add", [x, b.store("three", 3.0)], "moved"), *bounds], "cut")
        return b.add("Mul", [x, b.add("Div", [gate, "high"], "part")], "act")
    return x


@pytest.mark.parametrize("activation", ["", "Sigmoid", "HardSigmoid", "Clip"])
@pytest.mark.parametrize("has_gate", [False, True])
def test_what_narrows_the_maps_below_the_first_level_belongs_to_the_stem(
    has_gate: bool, activation: str
) -> None:
    b = _Builder()
    b.store("spatial", [2, 3], np.int64)
    x = b.conv("tensor", "first", (8, 3, 3, 3), pads=[1] * 4, strides=[2, 2])
    x = b.conv(_activate(b, activation, x), "deep", (8, 1, 3, 3), pads=[1] * 4, group=8)
    x = b.conv(x, "expand", (16, 8, 1, 1))
    x = b.conv(x, "stride", (16, 1, 3, 3), pads=[1] * 4, strides=[2, 2], group=16)
    x = b.add("HardSwish", [x], "stride_act")
    if has_gate:
        vector = b.conv(b.add("ReduceMean", [x, "spatial"], "mean"), "fc", (16, 16, 1, 1))
        x = b.add("Mul", [vector, x], "gated")
    x = b.conv(x, "narrow", (8, 16, 1, 1))
    x = b.conv(x, "next", (16, 8, 1, 1))
    x = b.conv(x, "late", (16, 1, 3, 3), pads=[1] * 4, strides=[2, 2], group=16)
    x = b.conv(x, "later", (8, 16, 1, 1))
    b.conv(x, "logits", (5, 8, 1, 1))
    groups = NodeGroups(_closed(b).graph).by_node
    assert groups["n_deep"] == "stem_depthwise"
    stem = {name for name, group in groups.items() if group == "stem"}
    assert stem == {"n_expand", "n_stride", "n_narrow"}
    assert groups["n_later"] == groups["n_next"] == "pointwise"


def test_grouped_convolutions_make_no_narrow_stem() -> None:
    b = _Builder()
    x = b.add("Relu", [b.conv("tensor", "first", (8, 3, 3, 3))], "first_act")
    x = b.conv(x, "grouped", (8, 4, 3, 3), group=2)
    b.conv(b.conv(x, "next", (8, 8, 3, 3)), "logits", (5, 8, 1, 1))
    groups = NodeGroups(_closed(b).graph).by_node
    assert groups["n_grouped"] == groups["n_next"] == "convolution"


@pytest.mark.parametrize("name", ["openvino", "onnx", "all"])
def test_nothing_is_rounded_before_a_clip_and_openvino_computes_the_graph(
    name: str, run: Run, images: list[NDArray[np.float32]]
) -> None:
    """With Q/DQ before a Clip from -1 on OpenVINO is wrong by as much as 12 dB."""
    runtime = pytest.importorskip("openvino").Core()
    b = _Builder()
    x = b.add("Relu", [b.conv("tensor", "first", (8, 3, 3, 3))], "first_act")
    x = b.conv(x, "dense", (8, 8, 3, 3))
    x = b.add("Clip", [x, b.store("low", -1.0), b.store("high", 1.0)], "cut")
    x = b.add("Relu", [b.conv(x, "behind", (8, 8, 3, 3))], "behind_act")
    b.conv(x, "logits", (5, 8, 1, 1))
    placement = place_qdq(_closed(b), shipped_policy(name))
    assert {"dense", "cut"} & set(placement.activations) == {"cut"}
    ranges = calibrate(_closed(b), placement.observed, lambda: images)
    quantized = insert_qdq(_closed(b), placement, ranges)
    read = runtime.read_model(use_u8_activations(quantized).SerializeToString())
    compiled = runtime.compile_model(read, "CPU", compile_settings(Precision.INT8))
    exact = run(quantized, images[0])[0]
    in_bytes = run(use_byte_kernels(quantized, unsigned=True), images[0])[0]
    for found in (compiled(images[0])[0], in_bytes):
        assert np.mean((found - exact) ** 2) < exact.var() / 1000  # 30 dB.


def test_groups_do_not_depend_on_names_or_weights(model: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for index, node in enumerate(other.graph.node):
        node.name = f"x{index}"
    for stored in other.graph.initializer:
        if stored.name.endswith((".w", ".b")):
            values = numpy_helper.to_array(stored)
            stored.CopyFrom(numpy_helper.from_array(np.zeros_like(values), stored.name))
    found = list(NodeGroups(other.graph).by_node.values())
    assert found == list(NodeGroups(model.graph).by_node.values())


def test_by_default_pooled_gates_activations_and_the_classifier_stay(
    quantize: Callable[[Policy], tuple[Placement, onnx.ModelProto]],
) -> None:
    placement, _ = quantize(DEFAULT)
    weights = {w.name.removesuffix(".w") for w in placement.weights}
    convolutions = {
        "stem", "deep", "project", "shortcut", "again", "small", "inner", "grow", "mixed", "late",
        "squeeze", "thin",
    }  # fmt: skip
    assert weights == convolutions | {"head", "fc1", "fc2"}
    assert placement.source == {"pool": "small"}
    assert not {"stem", "deep_act", "gated", "sum2", "coarse", "mean"} & {
        n for n, readers in placement.activations.items() if readers is None
    }
    assert "stem_act" in placement.activations  # Behind the Clip, as behind a Relu.
    assert "stem" not in placement.activations
    reasons = {c.node: c.reason for c in placement.nodes}
    assert "decision" in reasons["n_coarse"]
    assert placement.float_activations == {
        "Add": 1, "HardSwish": 1, "LeakyRelu": 1, "Mul": 1, "Pad": 1, "Resize": 1,
    }  # fmt: skip


def _assert_int8_nodes_stand_between_dq_and_q(
    placement: Placement, quantized: onnx.ModelProto
) -> None:
    made, readers = producers(quantized.graph), consumers(quantized.graph)
    nodes = {n.name: n for n in quantized.graph.node}
    outputs = {o.name for o in quantized.graph.output}
    for choice in placement.nodes:
        if choice.choice != "int8":
            continue
        node = nodes[choice.node]
        count = 2 if choice.group in {"residual", "residual_relu", "gate"} else 1
        read = node.input if choice.group == "concat" else node.input[:count]
        assert {made[name].op_type for name in read} == {"DequantizeLinear"}, choice
        (result,) = node.output
        while len(readers.get(result, [])) == 1 and result not in outputs:
            (following,) = readers[result]
            if following.op_type not in {"Relu", "Clip", "HardSwish", "LeakyRelu"}:
                break
            result = following.output[0]
        if choice.group != "classifier":
            assert {n.op_type for n in readers[result]} == {"QuantizeLinear"}, choice


def _assert_legal_for_tensorrt(quantized: onnx.ModelProto) -> None:
    stored = {t.name: t for t in quantized.graph.initializer}
    assert not any(t.data_type in (TensorProto.UINT8, TensorProto.INT32) for t in stored.values())
    for node in quantized.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = numpy_helper.to_array(stored[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
    found = lint_graph(quantized, "tensorrt", has_sizes=True)
    assert [f for f in found if f.level == "error"] == []


_POLICIES = st.fixed_dictionaries({g: st.sampled_from(c) for g, c in CHOICES.items()})


@given(groups=_POLICIES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_policy_gives_a_legal_graph_whose_int8_nodes_are_int8(
    groups: dict[str, str],
    quantize: Callable[[Policy], tuple[Placement, onnx.ModelProto]],
    model: onnx.ModelProto,
    images: list[NDArray[np.float32]],
    run: Run,
) -> None:
    placement, quantized = quantize(Policy("drawn", groups))
    _assert_legal_for_tensorrt(quantized)
    _assert_int8_nodes_stand_between_dq_and_q(placement, quantized)
    exact, found = run(model, images[0])[0], run(quantized, images[0])[0]
    noise = float(np.mean((exact - found) ** 2))
    assert noise == 0 or 10 * np.log10(float(exact.var()) / noise) > 20


def test_everything_int8_leaves_float_only_what_has_no_choice(
    quantize: Callable[[Policy], tuple[Placement, onnx.ModelProto]],
) -> None:
    placement, quantized = quantize(ALL)
    left = {c.node: c.reason for c in placement.nodes if c.choice != "int8"}
    assert left == {"n_logits": "its result is read in float"}
    assert placement.source == {"pool": "small", "up": "inner_act", "padded": "inner_act"}
    assert placement.float_activations == {"HardSigmoid": 1, "ReduceMean": 1}
    # In front of the mean and behind it, in front of HardSigmoid and behind it, and the input.
    assert placement.borders == 5
    _assert_int8_nodes_stand_between_dq_and_q(placement, quantized)


def test_a_fused_activation_has_no_quantisation_before_it(
    quantize: Callable[[Policy], tuple[Placement, onnx.ModelProto]],
) -> None:
    policy = replace(DEFAULT, groups={**DEFAULT.groups, "hard_swish": "fused"})
    _, quantized = quantize(policy)
    made = producers(quantized.graph)
    (swish,) = [n for n in quantized.graph.node if n.op_type == "HardSwish"]
    assert made[swish.input[0]].op_type == "Conv"
    assert {n.op_type for n in consumers(quantized.graph)["deep_act"]} == {"QuantizeLinear"}


def test_an_override_wins_and_one_that_does_not_fit_is_refused(model: onnx.ModelProto) -> None:
    chosen = replace(DEFAULT, overrides=(Override("n_aga*", "float", "too coarse"),))
    placement = place_qdq(model, chosen)
    (record,) = [c for c in placement.nodes if c.node == "n_again"]
    assert (record.choice, record.reason) == ("float", "too coarse")
    assert "again.w" not in {w.name for w in placement.weights}
    wrong = replace(DEFAULT, overrides=(Override("n_pool", "weights"),))
    with pytest.raises(ConfigError, match="no choice for max_pool"):
        place_qdq(model, wrong)


def test_ranges_of_one_policy_are_those_of_another(
    model: onnx.ModelProto, images: list[NDArray[np.float32]]
) -> None:
    few, many = place_qdq(model, DEFAULT).observed, place_qdq(model, ALL).observed
    first, second = (calibrate(model, names, lambda: images) for names in (few, many))
    shared = set(few) & set(many)
    assert len(shared) > 8
    assert {n: first[n] for n in shared} == {n: second[n] for n in shared}


def test_the_summary_counts_every_node_once(model: onnx.ModelProto) -> None:
    placement = place_qdq(model, ALL)
    counted = sum(n for found in placement.summary()["groups"].values() for n in found.values())
    assert counted == len(placement.nodes) == len(NodeGroups(model.graph).by_node)
    assert json.loads(json.dumps(placement.to_dict()))["nodes"][0]["node"] == "n_stem"


def test_tensorrts_own_parser_and_builder_take_every_policy(
    quantize: Callable[[Policy], tuple[Placement, onnx.ModelProto]],
    tensorrt_cpu: Path,
    tmp_path: Path,
) -> None:
    single = {
        f"{group}-{choice}": replace(DEFAULT, groups={**DEFAULT.groups, group: choice})
        for group, offered in CHOICES.items()
        for choice in offered
    }
    for name, policy in {**single, "all": ALL, "default": DEFAULT}.items():
        _, quantized = quantize(policy)
        fixed = onnx.ModelProto()
        fixed.CopyFrom(cast_to_fp16(quantized))
        for value in (*fixed.graph.input, *fixed.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        (tmp_path / f"{name}.onnx").write_bytes(fixed.SerializeToString())
    made = subprocess.run(
        [sys.executable, str(JUDGES), "tensorrt", str(tmp_path)], check=True, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(tensorrt_cpu)},
    )  # fmt: skip
    verdicts = json.loads(made.stdout.splitlines()[-1])["verdicts"]
    assert len(verdicts) > 30
    assert {name: said for name, (taken, said) in verdicts.items() if not taken} == {}


def test_an_override_that_fits_no_node_is_an_error(model: onnx.ModelProto) -> None:
    relu = next(node.name for node in model.graph.node if node.op_type == "Relu")
    for pattern in ("node_of_another_model*", relu):
        policy = replace(DEFAULT, overrides=(Override(pattern, "float"),))
        with pytest.raises(ConfigError, match="no node that int8 has a choice for is called so"):
            place_qdq(model, policy)
