"""The form of plain graphs: the same numbers, by operators that cost less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.global_pool import use_global_pool
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.image_rows import normalize_in_rows
from segdeploy.graph.narrow_resize import narrow_before_resize

Node = onnx.NodeProto
SIZE = (9, 13)


def closed(
    nodes: Sequence[Node],
    outputs: Sequence[str],
    *,
    channels: int = 6,
    sides: Any = SIZE,
    used: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model of `tensor` (N, channels, H, W) with constants that nodes of it may use."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w": rng.normal(size=(2, 6, 1, 1)).astype(np.float32),
        "w3": rng.normal(size=(2, 6, 3, 3)).astype(np.float32),
        "wide": rng.normal(size=(8, 6, 1, 1)).astype(np.float32),
        "rgb": rng.normal(size=(2, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(size=2).astype(np.float32),
        "twice": np.asarray([1, 1, 2, 3], np.float32),
        "half": np.asarray([1, 1, 0.5, 0.5], np.float32),
        "channels": np.asarray([1, 2, 1, 1], np.float32),
        "sizes": np.asarray([1, 6, 20, 31], np.int64),
        "ends": np.asarray([20, 31], np.int64),
        "axes": np.asarray([-1, -2], np.int64),
        "two_three": np.asarray([2, 3], np.int64),
        "yes": np.asarray(True),
        "one_axis": np.asarray([-1], np.int64),
    }
    read = {*used, *(name for node in nodes for name in node.input)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["N", channels, *sides])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in constants.items() if n in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, values: NDArray[Any]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: values})[0]
    return found


def tensor(channels: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(1, channels, *SIZE)).astype(np.float32)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def resize(inputs: Sequence[str], **attributes: Any) -> Node:
    return helper.make_node(
        "Resize", list(inputs), ["big"], name="resize", **{"mode": "linear", **attributes}
    )


CONV = helper.make_node("Conv", ["big", "w", "b"], ["y"], name="conv")
SHAPE = helper.make_node("Shape", ["tensor"], ["two"], name="shape", start=0, end=2)
CONCAT = helper.make_node("Concat", ["two", "ends"], ["four"], name="concat", axis=0)


BY_SIZES = [resize(["tensor", "", "", "sizes"])]
BY_AXES = [resize(["tensor", "", "", "ends"], axes=[2, 3])]
BY_SHAPE = [SHAPE, CONCAT, resize(["tensor", "", "", "four"])]
OPEN = [
    SHAPE,
    helper.make_node("Shape", ["tensor"], ["sides"], name="sides", start=2, end=4),
    helper.make_node("Mul", ["sides", "two_three"], ["ends_"], name="times"),
    helper.make_node("Concat", ["two", "ends_"], ["four"], name="concat", axis=0),
    resize(["tensor", "", "", "four"]),
]


@pytest.mark.parametrize(
    ("nodes", "sides"),
    [
        ([resize(["tensor", "", "twice"])], ("H", "W")),
        ([resize(["tensor", "", "twice"], mode="nearest")], ("H", "W")),
        ([resize(["tensor", "", "twice"], coordinate_transformation_mode="align_corners")], SIZE),
        (BY_SIZES, SIZE),
        (BY_AXES, SIZE),
        (BY_SHAPE, SIZE),
        (OPEN, ("H", "W")),
    ],
    ids=["scales", "nearest", "align_corners", "sizes", "axes", "shape", "open"],
)
def test_a_narrowing_convolution_goes_before_the_resize(nodes: list[Node], sides: Any) -> None:
    model = closed([*nodes, CONV], ["y"], sides=sides)
    kept = model.SerializeToString(deterministic=True)
    changed = narrow_before_resize(model)
    onnx.checker.check_model(changed, full_check=True)
    assert model.SerializeToString(deterministic=True) == kept
    assert "Conv" in kinds(changed)
    assert kinds(changed)[-1] == "Resize"
    assert len(changed.graph.node) == len(model.graph.node)
    before = run(model, tensor())
    np.testing.assert_allclose(run(changed, tensor()), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nodes", [BY_SIZES, BY_AXES, BY_SHAPE], ids=["sizes", "axes", "shape"])
@pytest.mark.parametrize("sides", [(40, 40), ("H", "W")], ids=["shrinks", "unknown"])
def test_a_resize_by_sizes_that_may_shrink_stays(nodes: list[Node], sides: Any) -> None:
    model = closed([*nodes, CONV], ["y"], sides=sides)
    assert narrow_before_resize(model) == model


def test_a_resize_that_makes_channels_stays() -> None:
    more = resize(["tensor", "", "", "sizes"], mode="nearest")
    model = closed([more, CONV], ["y"], channels=3)
    assert narrow_before_resize(model) == model


def branch(result: str, source: str) -> onnx.GraphProto:
    node = helper.make_node("Identity", [source], [result])
    return helper.make_graph(
        [node], result, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, [None] * 4)]
    )


def test_what_branches_of_control_flow_read_is_kept() -> None:
    choose = helper.make_node(
        "If", ["yes"], ["y"], name="if", then_branch=branch("t", "w"), else_branch=branch("e", "m")
    )
    model = closed([mean("axes"), choose], ["y"], used=["yes", "w"])
    for each in (use_global_pool, narrow_before_resize):
        assert each(model) == model


def test_a_mean_of_integers_stays() -> None:
    cast = helper.make_node("Cast", ["tensor"], ["whole"], name="cast", to=TensorProto.INT64)
    back = helper.make_node("Cast", ["m"], ["y"], name="back", to=TensorProto.FLOAT)
    model = closed([cast, mean("axes", "whole"), back], ["y"])
    assert "ReduceMean" in kinds(use_global_pool(model))


@pytest.mark.parametrize("name", ["image_rows", "image_pixels_shape", "image_mean_rows"])
def test_a_name_that_is_taken_leaves_the_image(name: str) -> None:
    model = image_graph(PreprocessSpec())
    model.graph.node.append(helper.make_node("Relu", ["y"], [name], name="taken"))
    assert normalize_in_rows(model) == model


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([resize(["tensor", "", "half"]), CONV], ["y"]),
        ([resize(["tensor", "", "twice"]), CONV], ["y", "big"]),
        (
            [resize(["tensor", "", "twice"]), CONV, helper.make_node("Relu", ["big"], ["r"])],
            ["y", "r"],
        ),
        (
            [
                resize(["tensor", "", "twice"]),
                helper.make_node("Conv", ["big", "wide"], ["y"], name="conv"),
            ],
            ["y"],
        ),
        (
            [
                resize(["tensor", "", "twice"]),
                helper.make_node("Conv", ["big", "w3"], ["y"], name="conv"),
            ],
            ["y"],
        ),
        (
            [
                resize(["tensor", "", "twice"]),
                helper.make_node("Conv", ["big", "w"], ["y"], name="conv", strides=[2, 2]),
            ],
            ["y"],
        ),
        (
            [
                resize(["tensor", "", "twice"]),
                helper.make_node("Conv", ["big", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
            ],
            ["y"],
        ),
        ([resize(["tensor", "", "twice"], mode="cubic"), CONV], ["y"]),
    ],
    ids=["shrinks", "output", "read", "widens", "3x3", "strided", "padded", "cubic"],
)
def test_another_convolution_or_resize_stays(nodes: list[Node], outputs: list[str]) -> None:
    model = closed(nodes, outputs)
    assert narrow_before_resize(model) == model


def mean(axes: str, source: str = "tensor", **attributes: Any) -> Node:
    return helper.make_node("ReduceMean", [source, axes], ["m"], name="mean", **attributes)


def test_a_mean_over_the_map_is_a_global_pooling() -> None:
    model = closed([mean("axes")], ["m"])
    changed = use_global_pool(model)
    assert kinds(changed) == ["GlobalAveragePool"]
    assert not changed.graph.initializer
    np.testing.assert_allclose(run(changed, tensor()), run(model, tensor()), rtol=0, atol=1e-6)


def test_other_means_stay() -> None:
    flat = helper.make_node("ReduceMax", ["tensor", "one_axis"], ["rows"], name="x", keepdims=0)
    for model in (
        closed([mean("one_axis")], ["m"]),
        closed([mean("axes", keepdims=0)], ["m"]),
        closed([flat, mean("axes", "rows")], ["m"]),  # Of rank 3, -2 is no height.
    ):
        assert "ReduceMean" in kinds(use_global_pool(model))


def image_graph(spec: PreprocessSpec, sides: Any = SIZE) -> onnx.ModelProto:
    conv = helper.make_node("Conv", ["tensor", "rgb"], ["y"], name="conv", pads=[1] * 4)
    model = closed([conv], ["y"], channels=3, sides=sides)
    return add_image_input(model, spec)


@pytest.mark.parametrize(
    "spec",
    [PreprocessSpec(), PreprocessSpec(scale=1.0, mean=(124.0, 116.5, 104.0), std=(1.0, 1.0, 1.0))],
    ids=["whole", "folded"],
)
def test_an_image_is_normalised_by_rows_to_the_same_bits(spec: PreprocessSpec) -> None:
    model = image_graph(spec, ("H", SIZE[1]))
    changed = normalize_in_rows(model)
    onnx.checker.check_model(changed, full_check=True)
    assert kinds(changed).index("Sub") < kinds(changed).index("Transpose")
    image = np.random.default_rng(4).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(run(changed, image), run(model, image))


@pytest.mark.parametrize(
    "model",
    [
        image_graph(PreprocessSpec(channel_order="bgr")),
        image_graph(PreprocessSpec(), ("H", "W")),
        image_graph(PreprocessSpec(scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)),
        closed([helper.make_node("Relu", ["tensor"], ["y"])], ["y"], channels=3),
    ],
    ids=["bgr", "open width", "nothing to do", "no image"],
)
def test_other_images_are_left(model: onnx.ModelProto) -> None:
    assert normalize_in_rows(model) == model
