"""Pooling in steps: NumPy's mean, whatever the sides, and only where a block divides one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from segdeploy.graph.pool_in_steps import pool_in_steps
from segdeploy.graph.proto import attribute


def graph(height: int | str, width: int | str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["map"], name="relu"),
        helper.make_node("GlobalAveragePool", ["map"], ["y"], name="pool"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 1, 1])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("size", "kernels"),
    [
        ((33, 33), [[11, 11], [3, 3]]),
        ((45, 60), [[15, 15], [3, 4]]),
        ((64, 128), [[16, 16], [4, 8]]),
        ((37, 32), [[37, 16], [1, 2]]),
        ((34, 51), [[2, 3], [17, 17]]),
    ],
)
def test_the_mean_of_means_is_the_mean(size: tuple[int, int], kernels: list[list[int]]) -> None:
    changed = pool_in_steps(graph(*size))
    onnx.checker.check_model(changed, full_check=True)
    pools = [n for n in changed.graph.node if n.op_type == "AveragePool"]
    found = [attribute(n, "kernel_shape") for n in pools]
    assert found == kernels
    values = np.random.default_rng(0).normal(size=(2, 5, *size)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (means,) = session.run(None, {"x": values})
    expected = np.maximum(values, 0).mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(means, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(37, 23), (1, 1), ("H", "W"), (32, "W")])
def test_other_maps_are_pooled_at_once(size: tuple[int | str, int | str]) -> None:
    model = graph(*size)
    assert pool_in_steps(model) == model
