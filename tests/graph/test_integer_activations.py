"""HardSwish and SiLU on bytes, against the exact functions, value by value."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.integer_activations import use_integer_activations
from segdeploy.graph.proto import graph_bytes


def activation_graph(
    kind: str, x_grid: tuple[float, int], y_grid: tuple[float, int], dtype: type[np.integer]
) -> onnx.ModelProto:
    """bytes -> DQ -> activation -> Q -> bytes."""
    nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["a"], name="dq")]
    if kind == "HardSwish":
        nodes.append(helper.make_node("HardSwish", ["a"], ["b"], name="act"))
    else:
        nodes.append(helper.make_node("Sigmoid", ["a"], ["s"], name="sigmoid"))
        nodes.append(helper.make_node("Mul", ["s", "a"], ["b"], name="act"))
    nodes.append(helper.make_node("QuantizeLinear", ["b", "ys", "yz"], ["y"], name="q"))
    constants = {
        "xs": np.float32(x_grid[0]), "xz": dtype(x_grid[1]),
        "ys": np.float32(y_grid[0]), "yz": dtype(y_grid[1]),
    }  # fmt: skip
    tensor = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", tensor, [256])],
        [helper.make_tensor_value_info("y", tensor, [256])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, x: NDArray[np.generic]) -> NDArray[np.generic]:
    session = onnxruntime.InferenceSession(graph_bytes(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def exact(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind == "HardSwish":
        return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))
    return np.asarray(x / (1 + np.exp(-x)))


GRIDS: list[tuple[type[np.integer], tuple[float, int], tuple[float, int]]] = [
    (np.uint8, (9.0 / 255, 85), (6.4 / 255, 15)),
    (np.uint8, (20.0 / 255, 38), (17.4 / 255, 6)),
    (np.uint8, (0.08, 128), (0.06, 128)),
    (np.int8, (0.08, 0), (0.06, 0)),
]


@pytest.mark.parametrize("kind", ["HardSwish", "SiLU"])
@pytest.mark.parametrize(("dtype", "x_grid", "y_grid"), GRIDS)
def test_every_byte_is_within_a_step_of_the_exact_activation(
    kind: str,
    dtype: type[np.integer],
    x_grid: tuple[float, int],
    y_grid: tuple[float, int],
) -> None:
    model = activation_graph(kind, x_grid, y_grid, dtype)
    rewritten = use_integer_activations(model)
    assert {n.op_type for n in rewritten.graph.node} == {
        "QLinearLeakyRelu" if kind == "HardSwish" else "QLinearSigmoid",
        "QLinearMul",
    }
    info = np.iinfo(dtype)
    x = np.arange(info.min, info.max + 1).astype(dtype)
    value = (x.astype(np.float64) - x_grid[1]) * x_grid[0]
    wanted = exact(kind, value)
    found = (run(rewritten, x).astype(np.float64) - y_grid[1]) * y_grid[0]
    low, high = ((end - y_grid[1]) * y_grid[0] for end in (info.min, info.max))
    gate_error = np.abs(value) / 255 * (1.0 if kind == "HardSwish" else 0.5)
    assert (np.abs(found - np.clip(wanted, low, high)) <= y_grid[0] * 0.501 + gate_error).all()


def test_beyond_three_the_product_is_exact() -> None:
    grid = (12.0 / 255, 64)
    rewritten = use_integer_activations(activation_graph("HardSwish", grid, grid, np.uint8))
    x = np.arange(256).astype(np.uint8)
    beyond = np.abs((x.astype(np.float64) - 64) * grid[0]) >= 3
    wanted = np.where(x.astype(int) > 64, x, 64)
    np.testing.assert_array_equal(run(rewritten, x)[beyond], wanted[beyond])


@pytest.mark.parametrize("change", ["second reader", "graph output", "per channel", "mixed types"])
def test_what_does_not_fit_is_left_alone(change: str) -> None:
    model = activation_graph("HardSwish", (0.05, 60), (0.05, 10), np.uint8)
    graph = model.graph
    if change == "second reader":
        graph.node.append(helper.make_node("Relu", ["b"], ["c"], name="other"))
        graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [256]))
    elif change == "graph output":
        graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [256]))
    elif change == "per channel":
        for tensor in graph.initializer:
            values = np.full(256, numpy_helper.to_array(tensor))
            if tensor.name in {"xs", "xz"}:
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    else:
        graph.initializer.append(numpy_helper.from_array(np.asarray(np.int8(0)), "signed"))
        graph.node[2].input[2] = "signed"
        graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    rewritten = use_integer_activations(model)
    assert "HardSwish" in {node.op_type for node in rewritten.graph.node}
    x = np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(run(rewritten, x), run(model, x))


def test_the_given_model_is_not_changed() -> None:
    model = activation_graph("HardSwish", (0.05, 60), (0.05, 10), np.uint8)
    before = graph_bytes(model)
    use_integer_activations(model)
    assert graph_bytes(model) == before
