"""Islands: what overflows float16 on images stays in float32, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import DataError
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.fp16 import cast_to_fp16, float32_nodes
from segdeploy.graph.overflow import (
    LIMIT,
    Peaks,
    describe_cast,
    find_islands,
    observe_peaks,
)
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.proto import element_types
from segdeploy.graph.qdq import insert_qdq

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]
LOUD = {
    "node_wide", "node_wide_act", "node_pool", "node_side", "node_side_act", "node_both",
    "node_head",
}  # fmt: skip


def _scaled(model: onnx.ModelProto, **factors: float) -> onnx.ModelProto:
    """Return the model with weights (dots as double underscores) times a factor."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if factor := factors.get(tensor.name.replace(".", "__")):
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


@pytest.fixture(scope="module")
def loud_model(small_model: onnx.ModelProto) -> onnx.ModelProto:
    """The maps from `wide` to `both` are 2e4 times as large; `head` takes it back: same logits."""
    loud = 2e4
    return _scaled(
        small_model, wide__weight=loud, wide__bias=loud, side__bias=loud, head__weight=1 / loud
    )


def test_an_overflow_is_found_and_kept_in_float32_with_casts_at_its_borders(
    small_model: onnx.ModelProto, loud_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    exact = run(loud_model, batch)[0]
    np.testing.assert_allclose(exact, run(small_model, batch)[0], rtol=1e-3, atol=1e-4)
    assert not np.isfinite(run(cast_to_fp16(loud_model), batch)[0]).all()
    islands = find_islands(loud_model, observe_peaks(loud_model, lambda: [batch]))
    assert set(islands) == LOUD
    assert "wide, which reaches " in islands["node_wide"]
    half = cast_to_fp16(loud_model, islands)
    found = run(half, batch)[0]
    assert np.abs(found - exact).max() < 0.02 * float(exact.std())
    assert {n.name for n in float32_nodes(half)} == LOUD
    types = element_types(half)
    assert types["wide_act"] == TensorProto.FLOAT
    assert types["stem"] == types["total"] == TensorProto.FLOAT16
    borders = [(n.input[0], n.output[0]) for n in half.graph.node if n.op_type == "Cast"]
    assert borders[1:-1] == [("total", "total_fp32"), ("head", "head_fp16")]


def test_peaks_are_the_largest_magnitudes(
    small_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    peaks = observe_peaks(small_model, lambda: [batch[:1], batch[1:]])
    watched = onnx.ModelProto()
    watched.CopyFrom(small_model)
    for name in ("total", "deep_act"):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        watched.graph.output.append(value)
    logits, total, deep = run(watched, batch)
    assert peaks.tensors["logits"] == pytest.approx(np.abs(logits).max(), rel=1e-5)
    assert peaks.tensors["total"] == pytest.approx(np.abs(total).max(), rel=1e-5)
    assert peaks.tensors["tensor"] == np.abs(batch).max()
    assert peaks.sums == {"node_pooled": pytest.approx(np.abs(deep).sum((2, 3)).max(), rel=1e-5)}


def test_a_quiet_graph_has_no_islands_and_is_cast_as_without_images(
    small_model: onnx.ModelProto, batch: NDArray[np.float32]
) -> None:
    islands = find_islands(small_model, observe_peaks(small_model, lambda: [batch]))
    assert islands == {}
    assert cast_to_fp16(small_model, islands) == cast_to_fp16(small_model)


def _one_node(op: str, sides: list[Any], *more: onnx.TensorProto, **attrs: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    names = ["x", *(tensor.name for tensor in more)]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="it", **attrs)],
        "one",
        [value("x", TensorProto.FLOAT, sides)],
        [value("y", TensorProto.FLOAT, None)],
        list(more),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _axes(*axes: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(axes, np.int64), "axes")


def _ones(name: str, count: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(count, np.float32), name)


SQUARE, PLAIN = np.square, np.abs
SUMMING = [
    (_one_node("ReduceMean", [1, 2, "H", "W"], _axes(-1, -2)), PLAIN, (2, 3)),
    (_one_node("ReduceSum", [1, 2, "H", "W"], _axes(3)), PLAIN, (3,)),
    (_one_node("ReduceL2", [1, 2, "H", "W"], _axes(2, 3)), SQUARE, (2, 3)),
    (_one_node("GlobalAveragePool", [1, 2, "H", "W"]), PLAIN, (2, 3)),
    (
        _one_node("InstanceNormalization", [1, 2, "H", "W"], _ones("scale", 2), _ones("b", 2)),
        SQUARE,
        (2, 3),
    ),
    (
        _one_node(
            "GroupNormalization", [1, 2, "H", "W"], _ones("scale", 2), _ones("b", 2), num_groups=1
        ),
        SQUARE,
        (1, 2, 3),
    ),
    (_one_node("LayerNormalization", [1, 2, "H", 7], _ones("scale", 7), axis=-1), SQUARE, (3,)),
]


@pytest.mark.parametrize(("model", "of", "axes"), SUMMING)
def test_what_an_operator_adds_up_inside_counts(
    model: onnx.ModelProto, of: Callable[[Any], Any], axes: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).standard_normal((1, 2, 9, 7)).astype(np.float32)
    found = observe_peaks(model, lambda: [values])
    assert found.sums == {"it": pytest.approx(of(values).sum(axes).max(), rel=1e-5)}
    assert find_islands(model, found) == {}
    loud = Peaks(found.tensors, {"it": 2 * LIMIT})
    assert find_islands(model, loud) == {"it": "adds up to 3.28e+04 inside"}


def test_an_average_over_windows_adds_up_what_each_window_holds() -> None:
    values = np.random.default_rng(0).standard_normal((1, 2, 9, 7)).astype(np.float32)
    model = _one_node("AveragePool", [1, 2, "H", "W"], kernel_shape=[4, 3], strides=[2, 1])
    found = observe_peaks(model, lambda: [values])
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(values), (4, 3), (2, 3))[:, :, ::2]
    assert found.sums == {"it": pytest.approx(windows.sum((-1, -2)).max(), rel=1e-5)}


def test_a_softmax_adds_up_the_odds_against_its_largest() -> None:
    values = np.random.default_rng(0).standard_normal((1, 5, 9, 7)).astype(np.float32)
    found = observe_peaks(_one_node("Softmax", [1, 5, "H", "W"], axis=1), lambda: [values])
    wanted = np.exp(values - values.max(1, keepdims=True)).sum(1).max()
    assert found.sums == {"it": pytest.approx(wanted, rel=1e-5)}


def test_a_weight_beyond_the_range_makes_an_island_without_any_image(
    small_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    model = _scaled(small_model, head__weight=1e6)
    islands = find_islands(model)
    assert list(islands) == ["node_head"]
    assert "its weight head.weight reaches" in islands["node_head"]
    half = cast_to_fp16(model, islands)
    assert {n.name for n in float32_nodes(half)} == {"node_head"}
    assert run(half, batch)[0].shape == (2, 5, 33, 47)


def test_a_constant_that_vanishes_makes_an_island() -> None:
    epsilon = numpy_helper.from_array(np.asarray(1e-12, np.float32), "eps")
    model = _one_node("Add", [1, 2, "H", "W"], epsilon)
    values = np.zeros((1, 2, 9, 7), np.float32)
    assert find_islands(model) == {}
    found = find_islands(model, observe_peaks(model, lambda: [values]))
    assert found == {"it": "its constant eps of 1e-12 is 0 in float16"}


def test_int8_around_an_island_is_dequantised_to_float32(
    loud_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    placement = place_qdq(loud_model)
    ranges = calibrate(loud_model, placement.observed, lambda: [batch])
    quantized = insert_qdq(loud_model, placement, ranges, np.float16)
    exact = run(quantized, batch)[0]
    broken = run(cast_to_fp16(quantized), batch)[0]  # int8 makes 127 of infinity: finite, wrong.
    assert not np.sqrt(np.mean((broken - exact) ** 2)) < 0.05 * float(exact.std())
    islands = find_islands(quantized, observe_peaks(loud_model, lambda: [batch]))
    assert {"wide_act_quantize", "wide_act_dequantize", "wide.weight_dequantize"} <= set(islands)
    half = cast_to_fp16(quantized, islands)
    onnx.checker.check_model(half, full_check=True)
    found = run(half, batch)[0]
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.05 * float(exact.std())
    assert element_types(half)["wide_act_dq"] == TensorProto.FLOAT
    assert element_types(half)["stem_dq"] == TensorProto.FLOAT16


def test_an_input_that_only_islands_read_is_not_cast(
    small_model: onnx.ModelProto, batch: NDArray[np.float32]
) -> None:
    model = _scaled(small_model, stem__weight=1e-5)
    loud = batch * np.float32(1e5)
    islands = find_islands(model, observe_peaks(model, lambda: [loud]))
    assert list(islands) == ["node_stem"]
    half = cast_to_fp16(model, islands)
    assert next(n for n in half.graph.node if n.name == "node_stem").input[0] == "tensor"
    assert "tensor_fp16" not in {n.output[0] for n in half.graph.node}


def test_the_manifest_tells_of_islands_and_underflow(small_model: onnx.ModelProto) -> None:
    model = _scaled(small_model, head__weight=1e-9, stem__weight=1e-4)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    said = describe_cast(model, {"node_side": "why"})
    assert said["islands"] == [{"node": "node_side", "reason": "why"}]
    floats = [v for n, v in stored.items() if v.dtype == np.float32 and not n.startswith("side.")]
    values = np.abs(np.concatenate([v.ravel() for v in floats]))
    half = values.astype(np.float16)
    assert said["underflow"]["weights"] == np.count_nonzero(values)
    assert said["underflow"]["to_zero"] == np.count_nonzero((half == 0) & (values > 0))
    is_short = (half > 0) & (values < np.finfo(np.float16).tiny)
    assert said["underflow"]["subnormal"] == np.count_nonzero(is_short)


def test_images_that_overflow_float32_are_refused(
    small_model: onnx.ModelProto, batch: NDArray[np.float32]
) -> None:
    with pytest.raises(DataError, match="not finite"):
        observe_peaks(small_model, lambda: [batch * np.float32(np.inf)])
