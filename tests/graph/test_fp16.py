from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.proto import element_types

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
