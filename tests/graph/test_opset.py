"""Opset conversion: what older operator sets meant, kept; ONNX Runtime runs both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.opset import OPSET, convert_opset
from segdeploy.graph.proto import opset_version

Node = onnx.NodeProto


def graph_of(nodes: list[Node], opset: int, **stored: object) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def run(model: onnx.ModelProto) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32)
    found: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return found


def node(kind: str, inputs: str, **attributes: Any) -> Node:
    return helper.make_node(kind, inputs.split(","), ["y"], **attributes)


SCALES = np.asarray([1, 1, 2.5, 3], np.float32)
ROI = np.zeros(0, np.float32)
ONES = np.asarray([1, 2, 3, 4], np.float32)
OLD: dict[str, onnx.ModelProto] = {
    "Upsample 8 linear": graph_of([node("Upsample", "x", scales=[1, 1, 2.5, 3], mode="linear")], 8),
    "Upsample 8 nearest": graph_of(
        [node("Upsample", "x", scales=[1, 1, 2.5, 3], mode="nearest")], 8
    ),
    "Upsample 9 linear": graph_of([node("Upsample", "x,s", mode="linear")], 9, s=SCALES),
    "Resize 10 linear": graph_of([node("Resize", "x,s", mode="linear")], 10, s=SCALES),
    "Resize 10 nearest": graph_of([node("Resize", "x,s", mode="nearest")], 10, s=SCALES),
    "Resize 11 half pixel": graph_of([node("Resize", "x,r,s", mode="linear")], 11, s=SCALES, r=ROI),
    "Resize 11 align corners": graph_of(
        [
            node(
                "Resize", "x,r,s", mode="linear", coordinate_transformation_mode="align_corners"
            )
        ],
        11, s=SCALES, r=ROI,
    ),
    "Resize 11 cubic": graph_of([node("Resize", "x,r,s", mode="cubic")], 11, s=SCALES, r=ROI),
    "Clip 6": graph_of([node("Clip", "x", min=-0.5, max=0.25)], 8),
    "Pad 2": graph_of([node("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)], 8),
    "Pad 2 reflect": graph_of([node("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")], 8),
    "Slice 1": graph_of([node("Slice", "x", axes=[2, 3], starts=[1, -3], ends=[5, 99])], 8),
    "Squeeze 1": graph_of(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[2], keepdims=1),
            node("Squeeze", "m", axes=[2]),
        ],
        8,
    ),
    "Unsqueeze 1": graph_of([node("Unsqueeze", "x", axes=[1])], 8),
    "Softmax 1, joint": graph_of([node("Softmax", "x", axis=1)], 8),
    "Softmax 11, last": graph_of([node("Softmax", "x", axis=3)], 11),
    "ReduceMean 1": graph_of([node("ReduceMean", "x", axes=[2, 3])], 8),
    "ReduceSum 1": graph_of([node("ReduceSum", "x", axes=[1])], 8),
    "Split 2": graph_of(
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=1, split=[1, 3]),
            node("Concat", "b,a", axis=1),
        ],
        8,
    ),
    "BatchNormalization 7": graph_of(
        [node("BatchNormalization", "x,g,b,m,v", epsilon=1e-3, momentum=0.9)], 7,
        g=ONES, b=ONES * 3, m=ONES / 2, v=ONES * 2,
    ),
    "PRelu 7": graph_of([node("PRelu", "x,p")], 7, p=np.full((4, 1, 1), 0.1, np.float32)),
    "AveragePool 7": graph_of(
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], 7
    ),
    "Dropout 7": graph_of([node("Dropout", "x", ratio=0.5)], 7),
    "LeakyRelu 6": graph_of([node("LeakyRelu", "x", alpha=0.2)], 8),
    "Elu 6": graph_of([node("Elu", "x")], 8),
    "Hardmax 1": graph_of([node("Hardmax", "x", axis=3)], 8),
    "DepthToSpace 1": graph_of([node("DepthToSpace", "x", blocksize=2)], 8),
    "ConvTranspose 1": graph_of(
        [node("ConvTranspose", "x,w", strides=[2, 2])], 8,
        w=np.random.default_rng(1).normal(size=(4, 3, 2, 2)).astype(np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_meaning_is_kept(name: str) -> None:
    model = OLD[name]
    converted = convert_opset(model)
    assert opset_version(converted) == OPSET
    onnx.checker.check_model(converted, full_check=True)
    expected, found = run(model), run(converted)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("name", ["Upsample 8 linear", "Resize 10 linear"])
def test_the_converter_alone_moves_the_sampling_points(name: str) -> None:
    """Why `graph.opset` mends what it gives. When this fails, the cure can go."""
    model = OLD[name]
    plain = onnx.version_converter.convert_version(model, OPSET)
    assert np.abs(run(plain) - run(model)).max() > 0.1


def test_newer_is_left_alone_and_input_unchanged() -> None:
    newer = graph_of([node("Relu", "x")], 20)
    assert opset_version(convert_opset(newer)) == 20
    older = OLD["Clip 6"]
    before = older.SerializeToString(deterministic=True)
    convert_opset(older)
    assert older.SerializeToString(deterministic=True) == before


def test_what_the_converter_does_not_know_is_a_build_error() -> None:
    model = graph_of([node("Frobnicate", "x")], 8)
    with pytest.raises(BuildError, match="from opset 8 to 18"):
        convert_opset(model)
