from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.clipping import TensorRange
from segdeploy.graph.fp16 import cast_to_fp16, float32_nodes
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.proto import element_types, opset_version
from segdeploy.graph.qdq import insert_qdq, round_scales

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]


def test_weights_and_activations_are_half_and_the_ends_stay_fp32(
    small_model: onnx.ModelProto,
) -> None:
    half = cast_to_fp16(small_model)
    types = element_types(half)
    assert types["tensor"] == types["logits"] == TensorProto.FLOAT
    made = {n.output[0] for n in half.graph.node if n.output[0] != "logits"}
    assert {types[name] for name in made} == {TensorProto.FLOAT16}
    stored = {t.data_type for t in half.graph.initializer}
    assert stored == {TensorProto.FLOAT16, TensorProto.INT64}


def test_result_is_as_close_as_half_precision_allows(
    small_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    exact, half = run(small_model, batch)[0], run(cast_to_fp16(small_model), batch)[0]
    assert half.dtype == np.float32
    spread = float(exact.std())
    assert 0 < np.abs(half - exact).max() < 0.02 * spread


def test_arithmetic_on_shapes_keeps_its_type(run: Run) -> None:
    """A height of 4098 is not a float16 number; in half precision the resize would be wrong."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Shape", ["tensor"], ["shape"], start=2, end=4, name="a"),
        helper.make_node("Cast", ["shape"], ["float_shape"], to=TensorProto.FLOAT, name="b"),
        helper.make_node("Add", ["float_shape", "one"], ["more"], name="c"),
        helper.make_node("Cast", ["more"], ["whole"], to=TensorProto.INT64, name="d"),
        helper.make_node("Shape", ["tensor"], ["lead"], start=0, end=2, name="e"),
        helper.make_node("Concat", ["lead", "whole"], ["sizes"], axis=0, name="f"),
        helper.make_node("Resize", ["tensor", "", "", "sizes"], ["y"], mode="nearest", name="g"),
        helper.make_node("Mul", ["y", "one"], ["logits"], name="h"),
    ]
    graph = helper.make_graph(
        nodes,
        "resize",
        [value("tensor", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [value("logits", TensorProto.FLOAT, ["N", 1, "h", "w"])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = run(cast_to_fp16(model), np.ones((1, 1, 4098, 3), np.float32))[0]
    assert found.shape == (1, 1, 4099, 4)


def test_a_weight_beyond_the_range_is_refused(small_model: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, 7e4, np.float32), "head.bias"))
    with pytest.raises(BuildError, match=r"head\.bias reaches 7e\+04"):
        cast_to_fp16(model)


@pytest.mark.parametrize("bound", [np.inf, 7e4])
def test_an_infinite_bound_stays_infinite(run: Run, bound: float) -> None:
    value = helper.make_tensor_value_info
    sides = [1, 3, 4, 5]
    ends = value("tensor", TensorProto.FLOAT, sides), value("logits", TensorProto.FLOAT, sides)
    bounds = {"low": -1.0, "high": bound}
    stored = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in bounds.items()]
    clip = helper.make_node("Clip", ["tensor", *bounds], ["logits"], name="clip")
    graph = helper.make_graph([clip], "clip", [ends[0]], [ends[1]], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if np.isfinite(bound):
        with pytest.raises(BuildError, match=r"high reaches 7e\+04"):
            cast_to_fp16(model)
        return
    batch = np.linspace(-9, 9, 60, dtype=np.float32).reshape(sides)
    found = run(cast_to_fp16(model), batch)[0]
    np.testing.assert_array_equal(found, np.maximum(batch.astype(np.float16), -1))


@pytest.fixture(scope="module")
def int8_in_half(small_model: onnx.ModelProto) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    batches = [rng.standard_normal((1, 3, 33, 47)).astype(np.float32)]
    placement = place_qdq(small_model)
    ranges = calibrate(small_model, placement.observed, lambda: batches)
    return cast_to_fp16(insert_qdq(small_model, placement, ranges, np.float16))


def test_nothing_around_int8_is_left_in_float32_by_accident(
    small_model: onnx.ModelProto, int8_in_half: onnx.ModelProto
) -> None:
    assert opset_version(int8_in_half) == 19
    assert float32_nodes(int8_in_half) == []
    types = element_types(int8_in_half)
    assert types["tensor"] == types["logits"] == TensorProto.FLOAT
    stored = {t.name: t for t in int8_in_half.graph.initializer}
    assert {t.data_type for t in stored.values()} == {
        TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64,
    }  # fmt: skip
    assert float32_nodes(small_model)  # The rule finds what a forgotten cast would leave.
    for node in int8_in_half.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert (numpy_helper.to_array(stored[node.input[1]]) > 0).all()


def test_int8_in_half_decides_as_the_same_scales_in_float32(
    small_model: onnx.ModelProto,
    int8_in_half: onnx.ModelProto,
    run: Run,
    batch: NDArray[np.float32],
) -> None:
    """The reference is the same grid in float32: what is left is half precision's rounding."""
    placement = place_qdq(small_model)
    stored = {t.name: numpy_helper.to_array(t) for t in int8_in_half.graph.initializer}
    ranges = {
        name: TensorRange(0, float(stored[f"{name}_scale_fp16"]) * 127, 0)
        for name in placement.observed
    }
    exact = run(insert_qdq(small_model, placement, ranges, np.float16), batch)[0]
    half = run(int8_in_half, batch)[0]
    spread = float(exact.std())
    assert 0 < float(np.sqrt(np.mean((half - exact) ** 2))) < 0.05 * spread


def test_weights_lie_on_the_grid_that_float16_scales_span(small_model: onnx.ModelProto) -> None:
    """A channel of tiny weights: rounding its scale after quantising would be wrong by percents."""
    tiny = onnx.ModelProto()
    tiny.CopyFrom(small_model)
    weight = next(t for t in tiny.graph.initializer if t.name == "head.weight")
    values = numpy_helper.to_array(weight) * np.float32(1e-4)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    placement = place_qdq(tiny)
    ranges = dict.fromkeys(placement.observed, TensorRange(4, 4, 0))
    half = cast_to_fp16(insert_qdq(tiny, placement, ranges, np.float16))
    stored = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    scale = stored["head.weight_scale_fp16"].astype(np.float64).reshape(-1, 1, 1, 1)
    read = stored["head.weight_q"] * scale
    assert np.all(np.abs(read - values) <= 0.5001 * scale)


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(BuildError, match=r"int8 step of x is 1e\+05, beyond the fp16 range"):
        round_scales(np.asarray([1, 1e5], np.float32), np.float16, "x")
    kept = round_scales(np.asarray([1e-9, 0.1], np.float32), np.float16, "x")
    assert (kept > 0).all()
    np.testing.assert_array_equal(kept, kept.astype(np.float16))
