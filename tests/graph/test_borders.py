"""Counted borders and float operators against the graph that ONNX Runtime really runs.

The reference is ONNX Runtime's own optimised graph: every QuantizeLinear left in it, and every
quantised tensor of which a DequantizeLinear is left, is a border.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segdeploy.graph.byte_kernels import use_byte_kernels
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.placement import Placement, place_qdq
from segdeploy.graph.policy import Policy, load_policy, shipped_policy
from segdeploy.graph.qdq import insert_qdq
from tests.graph.builder import GraphBuilder

# The shipped one of the runtime, a symmetric one, all of it, and activations without Q before them.
POLICIES = {
    "onnx": load_policy("default", "onnx"),
    "default": load_policy("default", "a_plug_in"),
    "all": load_policy("all", "onnx"),
    "openvino": load_policy("openvino", "onnx"),
}
# Operator between two int8 convolutions -> what of it ONNX Runtime computes in float.
CASES: dict[str, dict[str, int]] = {
    "": {}, "Sigmoid": {}, "silu": {}, "HardSwish": {}, "LeakyRelu": {}, "AveragePool": {},
    "MaxPool": {}, "GlobalAveragePool": {}, "Add": {}, "Concat": {},
    "HardSigmoid": {"HardSigmoid": 1}, "two_part_swish": {"HardSigmoid": 1, "Mul": 1},
    "Elu": {"Elu": 1}, "PRelu": {"PRelu": 1}, "Resize": {"Resize": 1}, "Pad": {"Pad": 1},
    "ConvTranspose": {"ConvTranspose": 1},
}  # fmt: skip


class _Net(GraphBuilder):
    """Conv, Relu, Conv, what is between, Conv, Relu, Conv."""

    def conv(self, x: str, output: str, out: int, into: int, side: int = 3) -> str:
        weight = self.rng.standard_normal((out, into, side, side)) / np.sqrt(into * side * side)
        pads = [side // 2] * 4
        return self.add("Conv", [x, self.store(f"{output}.w", weight)], output, pads=pads)

    def between(self, kind: str, x: str) -> str:
        if kind in {"silu", "two_part_swish"}:
            gate = self.add("Sigmoid" if kind == "silu" else "HardSigmoid", [x], "gate")
            return self.add("Mul", [x, gate], "act")
        if kind in {"Add", "Concat"}:
            along: dict[str, Any] = {"axis": 1} if kind == "Concat" else {}
            return self.add(kind, [x, self.conv("first_act", "other", 16, 16)], "act", **along)
        if kind in {"MaxPool", "AveragePool"}:
            return self.add(kind, [x], "act", kernel_shape=[2, 2], strides=[2, 2])
        if kind == "ConvTranspose":
            weight = self.store("grow.w", self.rng.standard_normal((16, 16, 2, 2)) / 8)
            return self.add(kind, [x, weight], "act", strides=[2, 2])
        more = {
            "Resize": ["", self.store("twice", [1, 1, 2, 2])],
            "Pad": [self.store("rim", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)],
            "PRelu": [self.store("slope", np.full((16, 1, 1), 0.1))],
        }
        how: dict[str, Any] = {"mode": "linear"} if kind == "Resize" else {}
        return self.add(kind, [x, *more.get(kind, [])], "act", **how) if kind else x

    def close(self, x: str) -> onnx.ModelProto:
        sides: dict[str, list[Any]] = {"tensor": [1, 3, 32, 48], "logits": [1, 5, None, None]}
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sides.items()]
        self.conv(x, "logits", 5, 16, 1)
        graph = helper.make_graph(self.nodes, "g", ends[:1], ends[1:], self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def make_net(kind: str, relu_behind: bool = False) -> onnx.ModelProto:
    net = _Net()
    first = net.add("Relu", [net.conv("tensor", "first", 16, 3)], "first_act")
    x = net.between(kind, net.conv(first, "dense", 16, 16))
    x = net.add("Relu", [x], "act_relu") if relu_behind else x
    late = net.conv(x, "late", 16, 32 if kind == "Concat" else 16)
    return net.close(net.add("Relu", [late], "late_act"))


def quantize(model: onnx.ModelProto, policy: Policy) -> tuple[Placement, onnx.ModelProto]:
    rng = np.random.default_rng(1)
    images = [rng.standard_normal((1, 3, 32, 48)).astype(np.float32) for _ in range(2)]
    placement = place_qdq(model, policy)
    ranges = calibrate(model, placement.observed, lambda: images)
    return placement, insert_qdq(model, placement, ranges)


def count_at_runtime(model: onnx.ModelProto, folder: Path) -> int:
    """Return the Q and the dequantised activations that ONNX Runtime computes in a run."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    bytes_ = use_byte_kernels(model, unsigned=True).SerializeToString()
    ort.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    stored = {tensor.name for tensor in graph.initializer}
    dequantized = {
        node.input[1]  # The tensor's scale: in two layouts it is still one tensor.
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in stored
    }
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return len(quantized) + len(dequantized)


@pytest.mark.parametrize("policy", ["onnx", "all", "default", "openvino"])
@pytest.mark.parametrize("kind", CASES)
def test_borders_are_those_that_onnx_runtime_computes(
    kind: str, policy: str, tmp_path: Path
) -> None:
    chosen = replace(POLICIES[policy], runtime="onnx")
    placement, quantized = quantize(make_net(kind), chosen)
    assert placement.borders == count_at_runtime(quantized, tmp_path)
    if policy == "onnx":
        assert placement.float_activations == CASES[kind]


@pytest.mark.parametrize("policy", ["onnx", "all"])
def test_a_sum_before_a_relu_is_in_bytes_where_zero_is_the_least_byte(
    policy: str, tmp_path: Path
) -> None:
    placement, quantized = quantize(make_net("Add", relu_behind=True), POLICIES[policy])
    assert placement.borders == count_at_runtime(quantized, tmp_path)
    assert placement.float_activations == ({} if policy == "onnx" else {"Add": 1})


def test_a_map_that_is_read_in_float_as_well_is_dequantised_once(tmp_path: Path) -> None:
    net = _Net()
    first = net.add("Relu", [net.conv("tensor", "first", 16, 3)], "first_act")
    dense = net.add("Relu", [net.conv(first, "dense", 16, 16)], "dense_act")
    mean = net.add("GlobalAveragePool", [dense], "mean")
    gate = net.add("HardSigmoid", [net.conv(mean, "fc", 16, 16, 1)], "gate")
    gated = net.add("Mul", [dense, gate], "gated")
    model = net.close(net.add("Relu", [net.conv(gated, "late", 16, 16)], "late_act"))
    placement, quantized = quantize(model, POLICIES["onnx"])
    assert placement.float_activations == {"HardSigmoid": 1}
    assert placement.borders == count_at_runtime(quantized, tmp_path)


def test_a_policy_knows_its_runtime_and_its_identity_does_not_depend_on_it() -> None:
    assert shipped_policy("onnx").runtime == load_policy("all", "onnx").runtime == "onnx"
    everything = load_policy("all", "openvino")
    assert everything.runtime == "openvino"
    assert everything == load_policy("all", "onnx")
    assert everything.digest == load_policy("all", "onnx").digest


def test_what_openvino_pools_and_transposes_is_counted_by_its_own_kernels() -> None:
    """Read off its runtime model: pooling takes and gives u8, a deconvolution f32."""
    policy = load_policy("default", "openvino")
    for kind, floats in {
        "GlobalAveragePool": {}, "AveragePool": {}, "PRelu": {}, "Sigmoid": {"Sigmoid": 1},
        "ConvTranspose": {"ConvTranspose": 1},
    }.items():  # fmt: skip
        assert place_qdq(make_net(kind), policy).float_activations == floats


def test_a_reason_is_given_for_every_node_and_claims_no_more_than_the_placement_knows() -> None:
    net = make_net("Pad")
    for name in ("default", "onnx", "openvino", "tensorrt"):
        nodes = {each.node: each for each in place_qdq(net, shipped_policy(name)).nodes}
        assert "quantised" not in {each.reason for each in nodes.values()}
        assert nodes["n_act"].reason.startswith("moves values and interpolates none")
    reason = next(n.reason for n in place_qdq(net, shipped_policy("openvino")).nodes)
    assert "where an artifact takes an image" in reason
    assert "else its input stays float" in reason
    reasons = {each.reason for each in place_qdq(net, shipped_policy("all")).nodes}
    assert reasons == {"quantised: Everything that can be quantised."}
