"""1x1 convolutions lose their dilation, others keep it, and the result stays what it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.pointwise import undilate_pointwise


def _model() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for index, (kernel, pad) in enumerate(((1, 0), (3, 2))):
        weight = random.normal(size=(4, 4, kernel, kernel)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(
            helper.make_node(
                "Conv",
                [f"x{index}", f"w{index}"],
                [f"x{index + 1}"],
                dilations=[2, 2],
                pads=[pad] * 4,
            )
        )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 9, 7]) for n in ("x0", "x2")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: np.ndarray = session.run(None, {"x0": batch})[0]
    return found


def test_only_pointwise_convolutions_change_and_nothing_moves() -> None:
    batch = np.random.default_rng(1).normal(size=(1, 4, 9, 7)).astype(np.float32)
    before = _run(_model(), batch)
    model = undilate_pointwise(_model())
    dilations = [
        list(a.ints) for n in model.graph.node for a in n.attribute if a.name == "dilations"
    ]
    assert dilations == [[1, 1], [2, 2]]
    assert np.abs(_run(model, batch) - before).max() <= 1e-5 * np.abs(before).max()
