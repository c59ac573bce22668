"""A small segmentation graph with every structure that the passes know, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]


def _stored(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    fan = int(np.prod(shape[1:])) or 1
    values = rng.standard_normal(shape) * (1.5 / np.sqrt(fan))
    return numpy_helper.from_array(values.astype(np.float32), name)


def make_model(num_logits: int = 5, seed: int = 0) -> onnx.ModelProto:
    """tensor N3HW -> stem, depthwise, squeeze-excite, residual, maxpool + concat -> logits."""
    rng = np.random.default_rng(seed)
    stored = [
        numpy_helper.from_array(np.asarray([2, 3], np.int64), "spatial"),
    ]
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def conv(source: str, output: str, cin: int, cout: int, kernel: int, group: int = 1) -> str:
        stored.append(_stored(rng, f"{output}.weight", cout, cin // group, kernel, kernel))
        stored.append(_stored(rng, f"{output}.bias", cout))
        pad = kernel // 2
        return add(
            "Conv", [source, f"{output}.weight", f"{output}.bias"], output,
            kernel_shape=[kernel] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    stem = add("HardSwish", [conv("tensor", "stem", 3, 8, 3)], "stem_act")
    deep = add("Relu", [conv(stem, "deep", 8, 8, 3, 8)], "deep_act")
    pooled = add("ReduceMean", [deep, "spatial"], "pooled", keepdims=1)
    gate = add("Relu", [conv(pooled, "gate1", 8, 4, 1)], "gate1_act")
    gate = add("HardSigmoid", [conv(gate, "gate2", 4, 8, 1)], "gate", alpha=1 / 6, beta=0.5)
    project = conv(add("Mul", [deep, gate], "gated"), "project", 8, 8, 1)
    first = conv(stem, "shortcut", 8, 8, 1)
    total = add("Add", [project, first], "total")
    wide = add("Relu", [conv(total, "wide", 8, 16, 3)], "wide_act")
    pool = add("MaxPool", [wide], "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    side = add("Relu", [conv(pool, "side", 16, 8, 1)], "side_act")
    both = add("Concat", [side, wide], "both", axis=1)
    head = add("Relu", [conv(both, "head", 24, 8, 3)], "head_act")
    conv(head, "logits", 8, num_logits, 1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [value("tensor", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [value("logits", TensorProto.FLOAT, ["N", num_logits, "H", "W"])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_model(model: onnx.ModelProto, batch: NDArray[Any]) -> list[NDArray[Any]]:
    """Run a graph by ONNX Runtime without optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[Any]] = session.run(None, {session.get_inputs()[0].name: batch})
    return found


@pytest.fixture(scope="session")
def small_model() -> onnx.ModelProto:
    return make_model()


@pytest.fixture(scope="session")
def binary_model() -> onnx.ModelProto:
    return make_model(num_logits=1, seed=4)


@pytest.fixture(scope="session")
def run() -> Run:
    return run_model


@pytest.fixture
def batch() -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((2, 3, 33, 47)).astype(np.float32)
