"""Zero points folded into biases: equal to integers counted by hand, and only where it is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.zero_points import fold_zero_points

ZERO, SCALE = 37, 0.125


def graph(
    *,
    group: int = 1,
    bias: bool = True,
    is_stored_float: bool = False,
    extra: tuple[onnx.NodeProto, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """uint8 bytes -> DQ -> Conv, with int8 weights per channel behind their own DQ."""
    rng = np.random.default_rng(3)
    weight = rng.integers(-127, 128, (4, 4 // group, 3, 3)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, 4).astype(np.float32)
    constants = {
        "s": np.float32(SCALE), "z": np.uint8(ZERO), "w": weight, "ws": scales,
        "wz": np.zeros(4, np.int8), "b": rng.normal(size=4).astype(np.float32),
    }  # fmt: skip
    attributes["group"] = group
    if is_stored_float:
        constants["wd"] = weight * scales[:, None, None, None]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"][: 2 + bias], ["y"], name="conv", **attributes),
        *extra,
    ]
    if is_stored_float:
        del nodes[1]
    outputs = [node.output[0] for node in nodes[-1 - len(extra) :]]
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 9, 9])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if n in used],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    x = np.random.default_rng(5).integers(0, 256, (1, 4, 9, 9)).astype(np.uint8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: list[NDArray[np.float32]] = session.run(None, {"x": x})
    return found


def zero_point(model: onnx.ModelProto, reader: str) -> int:
    """Return the zero point of what a node reads."""
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = (n for n in model.graph.node if n.name == reader)
    return int(stored[made[node.input[0]].input[2]])


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_stored_float", [True, False])
def test_an_unpadded_convolution_reads_plain_bytes(
    group: int, bias: bool, is_stored_float: bool
) -> None:
    model = graph(group=group, bias=bias, is_stored_float=is_stored_float)
    kept = model.SerializeToString(deterministic=True)
    changed = fold_zero_points(model)
    onnx.checker.check_model(changed, full_check=True)
    assert model.SerializeToString(deterministic=True) == kept
    assert zero_point(changed, "conv") == 0
    assert "z" not in {t.name for t in changed.graph.initializer}  # Nobody reads it any more.
    before, after = run(model)[0], run(changed)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    "options",
    [
        {"pads": (1, 1, 1, 1)},
        {"pads": (0, 0, 0, 1)},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_where_something_is_padded_the_zero_point_stays(options: dict[str, Any]) -> None:
    assert zero_point(fold_zero_points(graph(**options)), "conv") == ZERO


def test_other_readers_of_the_bytes_keep_their_zero() -> None:
    relu = helper.make_node("Relu", ["xd"], ["r"], name="relu")
    model = graph(extra=(relu,))
    changed = fold_zero_points(model)
    assert (zero_point(changed, "conv"), zero_point(changed, "relu")) == (0, ZERO)
    for after, before in zip(run(changed), run(model), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())


def test_two_convolutions_share_the_plain_bytes() -> None:
    again = helper.make_node("Conv", ["xd", "wd", "b"], ["y2"], name="again", strides=[2, 2])
    changed = fold_zero_points(graph(extra=(again,)))
    assert zero_point(changed, "conv") == zero_point(changed, "again") == 0
    assert [n.op_type for n in changed.graph.node].count("DequantizeLinear") == 2
    assert len({t.name for t in changed.graph.initializer if "bias" in t.name}) == 2


def test_a_graph_without_zero_points_comes_back_as_it_is() -> None:
    model = graph()
    for tensor in model.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(0, np.uint8), "z"))
    assert fold_zero_points(model) == model
