"""Equalisation changes weights and no result; bias correction removes the mean error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segdeploy.core.errors import DataError
from segdeploy.graph.bias_correction import correct_bias, measure_shifts
from segdeploy.graph.calibrate import calibrate, find_channel_peaks
from segdeploy.graph.equalization import (
    LARGEST_EXPONENT,
    choose_exponents,
    equalize,
    find_regions,
)
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.qdq import insert_qdq

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((1, 3, 40, 48)).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def uneven(small_model: onnx.ModelProto) -> onnx.ModelProto:
    """The small model with `deep`'s channels, made by a depthwise convolution, far apart."""
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    factors = 2.0 ** np.arange(0, -8, -1, dtype=np.float32)
    for tensor in model.graph.initializer:
        if tensor.name in {"deep.weight", "deep.bias"}:
            values = numpy_helper.to_array(tensor)
            shape = (-1, *[1] * (values.ndim - 1))
            scaled = (values * factors.reshape(shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    return model


def _regions(model: onnx.ModelProto) -> dict[str, list[str]]:
    return {r.makers[0].name: [n.name for n in r.readers] for r in find_regions(model)}


def test_regions_end_where_a_factor_would_not_pass(small_model: onnx.ModelProto) -> None:
    found = _regions(small_model)
    assert found["node_deep"] == ["node_gate1", "node_project"]  # Through Relu, mean and gate.
    assert found["node_project"] == ["node_wide"]  # With the shortcut, through their sum.
    tensors = {t for region in find_regions(small_model) for t in region.tensors}
    broken = {"tensor", "stem", "stem_act", "gate", "gate2", "wide", "side", "both", "logits"}
    assert tensors.isdisjoint(broken)  # HardSwish, HardSigmoid, Concat, and the ends.


@pytest.mark.parametrize("name", ["small_model", "uneven"])
def test_the_float_graph_computes_the_same_bits(
    name: str, run: Run, images: list[NDArray[np.float32]], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    changed = equalize(model, lambda: images)
    assert changed != model
    for batch in [*images, np.full((2, 3, 33, 35), 50, np.float32)]:
        np.testing.assert_array_equal(run(changed, batch)[0], run(model, batch)[0])


def test_a_sum_that_spreads_one_channel_over_many_ends_a_region(
    small_model: onnx.ModelProto, run: Run, images: list[NDArray[np.float32]]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    for tensor in model.graph.initializer:
        if tensor.name in {"shortcut.weight", "shortcut.bias"}:
            values = numpy_helper.to_array(tensor)[:1]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert "node_project" in _regions(small_model)
    assert not {"node_project", "node_shortcut"} & set(_regions(model))
    changed = equalize(model, lambda: images)
    assert [list(t.dims) for t in changed.graph.initializer] == [
        list(t.dims) for t in model.graph.initializer
    ]
    np.testing.assert_array_equal(run(changed, images[0])[0], run(model, images[0])[0])


def test_ranges_come_closer_and_none_becomes_wider(
    uneven: onnx.ModelProto, images: list[NDArray[np.float32]]
) -> None:
    read = list({name for region in find_regions(uneven) for name in region.read})
    before = find_channel_peaks(uneven, read, lambda: images)
    after = find_channel_peaks(equalize(uneven, lambda: images), read, lambda: images)
    for name in read:
        assert after[name].max() <= before[name].max() * np.sqrt(2)  # Powers of two are coarse.
    lowest = [float(p["gated"][p["gated"] > 0].min()) for p in (before, after)]
    assert lowest[1] > 2 * lowest[0]


def test_int8_of_an_uneven_graph_gains(
    uneven: onnx.ModelProto, run: Run, images: list[NDArray[np.float32]]
) -> None:
    placement = place_qdq(uneven)

    def noise(model: onnx.ModelProto) -> float:
        ranges = calibrate(model, placement.observed, lambda: images)
        quantized = insert_qdq(model, placement, ranges)
        parts = [run(quantized, b)[0] - run(model, b)[0] for b in images]
        return float(np.mean(np.square(parts)))

    assert noise(equalize(uneven, lambda: images)) < noise(uneven)


def test_a_channel_that_is_always_zero_gets_a_bounded_factor() -> None:
    found = choose_exponents(np.asarray([8.0, 0.0, 2.0, 1e-9]))
    assert found.tolist() == [0, -LARGEST_EXPONENT, -1, -LARGEST_EXPONENT]
    assert choose_exponents(np.zeros(3)).tolist() == [0, 0, 0]


def test_a_shared_weight_is_left_alone(small_model: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    first, second = (n for n in model.graph.node if n.name in {"node_project", "node_shortcut"})
    second.input[1] = first.input[1]
    assert "node_project" not in _regions(model)


def test_bias_correction_measures_the_mean_error_of_each_convolution(
    small_model: onnx.ModelProto, run: Run, images: list[NDArray[np.float32]]
) -> None:
    placement = place_qdq(small_model)
    quantized = insert_qdq(
        small_model, placement, calibrate(small_model, placement.observed, lambda: images)
    )
    shifts = measure_shifts(small_model, quantized, lambda: images)
    assert {"node_stem", "node_gate1", "node_wide"} <= set(shifts)

    def outputs(model: onnx.ModelProto) -> NDArray[np.float64]:
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        del watched.graph.output[:]
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info("stem", TensorProto.FLOAT, None)
        )
        return np.stack([run(watched, b)[0].astype(np.float64) for b in images])

    # The stem reads the image itself, so that its twin is the int8 graph's own stem.
    slow = (outputs(small_model) - outputs(quantized)).mean(axis=(0, 1, 3, 4))
    np.testing.assert_allclose(shifts["node_stem"], slow, atol=1e-6)
    corrected = correct_bias(small_model, quantized, lambda: images)
    left = (outputs(small_model) - outputs(corrected)).mean(axis=(0, 1, 3, 4))
    assert np.abs(left).max() < 1e-6 < np.abs(slow).max()


def test_bias_correction_gives_a_bias_where_there_was_none(
    small_model: onnx.ModelProto, images: list[NDArray[np.float32]]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    stem = next(n for n in model.graph.node if n.name == "node_stem")
    del stem.input[2]
    placement = place_qdq(model)
    quantized = insert_qdq(model, placement, calibrate(model, placement.observed, lambda: images))
    corrected = correct_bias(model, quantized, lambda: images)
    node = next(n for n in corrected.graph.node if n.name == "node_stem")
    assert len(node.input) == 3
    with pytest.raises(DataError, match="at least one image"):
        correct_bias(model, quantized, list)
