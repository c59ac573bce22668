"""What ONNX Runtime's CPU gets instead of an int8 graph: equal bytes, fewer float operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.byte_kernels import use_byte_kernels
from segdeploy.graph.proto import graph_bytes

SCALE = 0.05


def conv_graph(activation: str, zero: int, top: float = 6.0) -> onnx.ModelProto:
    """float -> Q/DQ -> Conv -> activation -> Q -> DQ, all on unsigned bytes."""
    rng = np.random.default_rng(1)
    constants = {
        "s": np.float32(SCALE), "z": np.uint8(zero), "xz": np.uint8(128),
        "w": rng.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, np.int8),
        "low": np.float32(0), "high": np.float32(top),
    }  # fmt: skip
    inputs = {"Relu": ["c"], "Clip": ["c", "low", "high"]}[activation]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "xz"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "s", "xz"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv"),
        helper.make_node(activation, inputs, ["a"], name="act"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 7, 7])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(
    model: onnx.ModelProto, level: str = "ORT_ENABLE_ALL", saved: Path | None = None
) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    session = onnxruntime.InferenceSession(
        graph_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(2).normal(0, 2, (1, 4, 9, 9)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(("activation", "top"), [("Relu", 0.0), ("Clip", 12.75), ("Clip", 6.35)])
def test_a_relu_moves_behind_rounding_and_its_convolution_fuses(
    activation: str, top: float, tmp_path: Path
) -> None:
    model = conv_graph(activation, 128, top)
    fast = use_byte_kernels(model, unsigned=True)
    np.testing.assert_array_equal(run(fast, "ORT_DISABLE_ALL"), run(model, "ORT_DISABLE_ALL"))
    run(fast, saved=tmp_path / "fast.onnx")
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "fast.onnx")).graph.node]
    assert "QLinearConv" in kinds
    assert "Conv" not in kinds


def test_a_clip_below_the_largest_byte_stays() -> None:
    model = conv_graph("Clip", 128, 3.0)
    fast = use_byte_kernels(model, unsigned=True)
    assert [n.op_type for n in fast.graph.node].index("Clip") < len(fast.graph.node) - 2
    np.testing.assert_array_equal(run(fast, "ORT_DISABLE_ALL"), run(model, "ORT_DISABLE_ALL"))


def test_a_relu_at_the_least_byte_is_left_to_the_runtime(tmp_path: Path) -> None:
    model = conv_graph("Relu", 0)
    fast = use_byte_kernels(model, unsigned=True)
    assert fast.graph.node == model.graph.node
    run(fast, saved=tmp_path / "fast.onnx")
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "fast.onnx")).graph.node]
    assert "QLinearConv" in kinds
    assert "Relu" not in kinds


def test_weights_of_a_float_convolution_become_constants() -> None:
    model = conv_graph("Relu", 0)
    graph = model.graph
    graph.node[3].input[0] = "x"  # The convolution reads the float input.
    for index in (1, 0):
        del graph.node[index]
    fast = use_byte_kernels(model, unsigned=True)
    assert {n.name for n in fast.graph.node} == {"conv", "act", "q", "y"}
    np.testing.assert_allclose(run(fast), run(model), atol=SCALE * 1.01)
