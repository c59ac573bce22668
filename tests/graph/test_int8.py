"""Int8: where Q/DQ goes, with which ranges, and what TensorRT's and ONNX Runtime's rules ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segdeploy.core.errors import BuildError, DataError
from segdeploy.graph import calibrate as calibrate_module
from segdeploy.graph.calibrate import (
    NUM_BINS,
    TensorRange,
    calibrate,
    choose_clip,
    histogram,
)
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.qdq import channel_scales, insert_qdq
from segdeploy.graph.u8_activations import use_u8_activations

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]
Batches = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def images() -> Batches:
    rng = np.random.default_rng(5)
    sizes = [(33, 47), (64, 40), (35, 35), (48, 64)]
    return [rng.standard_normal((1, 3, *size)).astype(np.float32) for size in sizes]


@pytest.fixture(scope="module")
def int8_model(small_model: onnx.ModelProto, images: Batches) -> onnx.ModelProto:
    placement = place_qdq(small_model)
    ranges = calibrate(small_model, placement.observed, lambda: images)
    return insert_qdq(small_model, placement, ranges)


def test_placement_leaves_out_the_gate_and_the_last_classifier(
    small_model: onnx.ModelProto,
) -> None:
    placement = place_qdq(small_model)
    weights = {w.name.removesuffix(".weight") for w in placement.weights}
    fused = {"stem", "deep", "project", "shortcut", "wide", "side", "head"}
    assert weights == fused | {"gate1", "gate2"}  # The gate's weights alone: for the file's size.
    assert placement.source == {"pool": "wide_act"}
    gate = {"pooled", "gate1", "gate1_act", "gate2", "gate"}
    assert (gate | {"deep", "wide", "logits"}).isdisjoint(placement.activations)
    assert {"tensor", "stem", "deep_act", "total", "both"} <= set(placement.activations)


def test_int8_graph_obeys_the_rules_of_tensorrt(int8_model: onnx.ModelProto) -> None:
    stored = {t.name: t for t in int8_model.graph.initializer}
    assert not any(t.data_type in (TensorProto.UINT8, TensorProto.INT32) for t in stored.values())
    kinds = [n.op_type for n in int8_model.graph.node]
    assert kinds.count("QuantizeLinear") > 5
    for node in int8_model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = numpy_helper.to_array(stored[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (numpy_helper.to_array(stored[node.input[1]]) > 0).all()
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weight = numpy_helper.to_array(stored[node.input[0]])
            assert numpy_helper.to_array(stored[node.input[1]]).shape == (weight.shape[0],)
            assert weight.min() >= -127
        if node.op_type == "Conv" and len(node.input) > 2:
            assert stored[node.input[2]].data_type == TensorProto.FLOAT


def test_int8_result_stays_close(
    small_model: onnx.ModelProto, int8_model: onnx.ModelProto, run: Run, images: Batches
) -> None:
    for batch in images:
        exact, found = run(small_model, batch)[0], run(int8_model, batch)[0]
        noise = float(np.mean((exact - found) ** 2))
        assert 10 * np.log10(float(exact.var()) / noise) > 25  # dB; 8 bits through six layers.


def test_u8_rewrite_computes_the_same_and_lets_every_convolution_fuse(
    int8_model: onnx.ModelProto, run: Run, images: Batches, tmp_path: Path
) -> None:
    unsigned = use_u8_activations(int8_model)
    onnx.checker.check_model(unsigned, full_check=True)
    for batch in images:
        np.testing.assert_array_equal(run(unsigned, batch)[0], run(int8_model, batch)[0])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        unsigned.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 7  # All but the two of the gate and the classifier.
    assert sum(kind in {"Conv", "FusedConv"} for kind in kinds) == 3


def test_u8_rewrite_leaves_a_float_graph_alone(small_model: onnx.ModelProto) -> None:
    assert use_u8_activations(small_model) == small_model


def test_calibration_depends_neither_on_order_nor_on_grouping(
    small_model: onnx.ModelProto, images: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = place_qdq(small_model).observed
    first = calibrate(small_model, tensors, lambda: images)
    assert calibrate(small_model, tensors, lambda: images[::-1]) == first
    monkeypatch.setattr(calibrate_module, "GROUP_BYTES", 1)  # One tensor a pass.
    assert calibrate(small_model, tensors, lambda: iter(images)) == first


def test_ranges_match_a_slow_search_on_the_activation_itself(
    small_model: onnx.ModelProto, run: Run, images: Batches
) -> None:
    found = calibrate(small_model, ["total"], lambda: images)["total"]
    watched = onnx.ModelProto()
    watched.CopyFrom(small_model)
    del watched.graph.output[:]
    watched.graph.output.append(
        onnx.helper.make_tensor_value_info("total", TensorProto.FLOAT, None)
    )
    values = np.concatenate([run(watched, b)[0].ravel() for b in images]).astype(np.float64)
    assert found.abs_max == pytest.approx(np.abs(values).max(), rel=1e-6)

    def error(clip: float) -> float:
        step = clip / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        return float(np.mean((values - rounded) ** 2))

    best = min(error(c) for c in np.linspace(0.2, 1, 81) * found.abs_max)
    assert error(found.clip) <= 1.05 * best
    assert found.clipped_share == pytest.approx(np.mean(np.abs(values) > found.clip), abs=2e-3)


def test_what_hardswish_maps_to_zero_does_not_widen_a_range(
    small_model: onnx.ModelProto, images: Batches
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    bias = next(t for t in model.graph.initializer if t.name == "stem.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, -1000, np.float32), "stem.bias"))
    found = calibrate(model, ["stem", "deep_act"], lambda: images)
    assert found["stem"].abs_max == 3.0


def test_histogram_counts_every_value_once() -> None:
    values = np.asarray([0, 0, -1, 0.5, 1, 0.25, -0.0], np.float32)
    counts = histogram(values, 1.0)
    assert counts[0] == 3
    assert counts.sum() == values.size
    assert counts[-1] == 2
    assert counts[1 + NUM_BINS // 2] == 1
    assert counts[1 + NUM_BINS // 4] == 1


def test_a_tensor_that_is_always_zero_gets_a_harmless_scale() -> None:
    counts = histogram(np.zeros(10, np.float32), 0.0)
    assert choose_clip(counts, 0.0) == TensorRange(0.0, 0.0, 0.0)
    assert TensorRange(0.0, 0.0, 0.0).scale == 1.0


def test_one_outlier_does_not_decide_the_range() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(200_000)).astype(np.float32)
    values[0] = 100.0
    found = choose_clip(histogram(values, 100.0), 100.0)
    assert 3 < found.clip < 75


def test_images_that_give_nan_are_refused(small_model: onnx.ModelProto, images: Batches) -> None:
    broken = images[0].copy()
    broken[0, 0, 5, 5] = np.inf
    with pytest.raises(DataError, match="not finite"):
        calibrate(small_model, place_qdq(small_model).observed, lambda: [images[1], broken])


def test_no_images_are_refused(small_model: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="at least one image"):
        calibrate(small_model, ["total"], list)


def test_dead_channels_get_a_scale_that_their_bias_survives() -> None:
    weights = np.zeros((3, 4, 1, 1), np.float32)
    weights[0] = 0.5
    weights[1] = 1e-30
    floor = np.asarray([0.0, 1e-9, 0.0])
    scales = channel_scales(weights, 0, floor)
    np.testing.assert_allclose(scales, [0.5 / 127, 1e-9, 1.0], rtol=1e-6)


def test_a_missing_range_and_a_second_quantisation_are_refused(
    small_model: onnx.ModelProto, int8_model: onnx.ModelProto
) -> None:
    with pytest.raises(BuildError, match="no range"):
        insert_qdq(small_model, place_qdq(small_model), {})
    with pytest.raises(BuildError, match="already"):
        place_qdq(int8_model)
