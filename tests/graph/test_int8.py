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

from segdeploy.core.errors import BuildError
from segdeploy.graph.byte_kernels import use_byte_kernels
from segdeploy.graph.calibrate import calibrate
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


def test_int8_result_is_closer_than_that_of_onnx_runtimes_own_quantiser(
    small_model: onnx.ModelProto,
    int8_model: onnx.ModelProto,
    run: Run,
    images: Batches,
    tmp_path: Path,
) -> None:
    """Both symmetric int8, per channel, calibrated on the same images."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    name = small_model.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch}

    onnx.save(small_model, str(tmp_path / "plain.onnx"))
    quantization.quantize_static(
        tmp_path / "plain.onnx", tmp_path / "theirs.onnx", Reader(), per_channel=True,
        activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )  # fmt: skip
    theirs = onnx.load(str(tmp_path / "theirs.onnx"))
    noise = {"ours": 0.0, "theirs": 0.0}
    for batch in images:
        exact = run(small_model, batch)[0]
        for who, model in (("ours", int8_model), ("theirs", theirs)):
            noise[who] += float(np.mean((exact - run(model, batch)[0]) ** 2) / exact.var())
    ours, others = (10 * np.log10(len(images) / noise[who]) for who in ("ours", "theirs"))
    assert ours > others  # dB


def test_u8_rewrite_computes_the_same_and_lets_every_convolution_fuse(
    int8_model: onnx.ModelProto, run: Run, images: Batches, tmp_path: Path
) -> None:
    unsigned = use_u8_activations(int8_model)
    onnx.checker.check_model(unsigned, full_check=True)
    for batch in images:
        np.testing.assert_array_equal(run(unsigned, batch)[0], run(int8_model, batch)[0])
    fast = use_byte_kernels(int8_model, unsigned=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        fast.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 7  # All but the two of the gate and the classifier.
    assert sum(kind in {"Conv", "FusedConv"} for kind in kinds) == 3


def test_u8_rewrite_leaves_a_float_graph_alone(small_model: onnx.ModelProto) -> None:
    assert use_u8_activations(small_model) == small_model
    assert use_byte_kernels(small_model, unsigned=True) == small_model


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
