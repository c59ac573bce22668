"""Weights of half range: exact sums of byte products on processors without VNNI."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.backends.openvino_weights import halve, halve_weights
from segdeploy.frameworks import processor

openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize("shared", [(1, 2, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_half_the_weights_at_twice_the_scale(shared: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (6, 8, 3, 3), np.int8)
    weight[2] = weight[2] // 2  # Fits as it is, where a scale is its own.
    weight[:, 5] = weight[:, 5] // 2
    shape = tuple(1 if axis in shared else size for axis, size in enumerate(weight.shape))
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    halved, doubled = halve(weight, scale)
    assert halved.dtype == np.int8
    assert np.abs(halved.astype(int)).max() <= 64
    factor = doubled / scale
    fits = np.abs(weight.astype(int)).max(axis=shared, keepdims=True) <= 64
    assert np.array_equal(factor == 1, fits)
    assert set(np.unique(factor)) <= {1.0, 2.0}
    error = weight - factor * halved
    assert np.abs(error).max() == 1
    assert np.abs(error.sum(axis=shared)).max() <= 1  # Folded zero points stay right.
    again, same = halve(halved, doubled)
    assert again is halved
    assert same is doubled


def _dense_convolution(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write a 1x1 convolution of large bytes by large weights; return an input and the answer."""
    rng = np.random.default_rng(1)
    weight = rng.integers(90, 128, (16, 32, 1, 1)).astype(np.int8)
    weight[:, ::4] *= -1
    bytes_in = rng.integers(180, 256, (1, 32, 8, 8)).astype(np.uint8)
    scale = rng.uniform(0.001, 0.002, 16).astype(np.float32)
    stored = {
        "step": np.float32(0.02), "zero": np.uint8(0), "weight": weight,
        "scale": scale, "none": np.zeros(16, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["numbers"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["w"], axis=0),
        helper.make_node("Conv", ["numbers", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, bytes_in.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16, 8, 8))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    kernel = weight[:, :, 0, 0] * scale[:, None].astype(np.float64)
    numbers = bytes_in.astype(np.float64) * 0.02
    return numbers.astype(np.float32), np.einsum("oi,nihw->nohw", kernel, numbers)


@pytest.mark.skipif(
    platform.machine().lower() not in {"x86_64", "amd64"}, reason="x86 kernels overflow"
)
def test_sums_are_exact_without_vnni(tmp_path: Path) -> None:
    """The same convolution by AVX2 kernels: saturated as it is, right with halved weights."""
    numbers, right = _dense_convolution(tmp_path / "dense.onnx")
    np.save(tmp_path / "x.npy", numbers)
    code = f"""
from pathlib import Path
import numpy as np
import openvino
from segdeploy.backends.openvino_weights import halve_weights
folder = Path({str(tmp_path)!r})
core = openvino.Core()
for name in ("plain", "halved"):
    model = core.read_model(folder / "dense.onnx")
    if name == "halved":
        assert halve_weights(model) == 1
    compiled = core.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
    np.save(folder / f"{{name}}.npy", compiled(np.load(folder / "x.npy"))[0])
"""
    variables = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=variables)
    error = {
        name: np.abs(np.load(tmp_path / f"{name}.npy") - right).max() / np.abs(right).max()
        for name in ("plain", "halved")
    }
    assert error["plain"] > 0.05  # Else there is nothing to mend here.
    assert error["halved"] < 0.01


def test_halved_weights_are_left_alone(tmp_path: Path) -> None:
    _dense_convolution(tmp_path / "dense.onnx")
    model = openvino.Core().read_model(tmp_path / "dense.onnx")
    assert halve_weights(model) == 1
    assert halve_weights(model) == 0


def test_depthwise_weights_keep_their_bits(tmp_path: Path) -> None:
    weight = np.full((16, 1, 3, 3), 127, np.int8)
    scale, none = np.ones(16, np.float32), np.zeros(16, np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], group=16),
    ]
    graph = helper.make_graph(
        nodes,
        "depthwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 16, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16, 6, 6))],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(scale, "scale"),
            numpy_helper.from_array(none, "none"),
        ],
    )
    path = tmp_path / "depthwise.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    assert halve_weights(openvino.Core().read_model(path)) == 0


@pytest.mark.parametrize(
    ("machine", "flags", "kept", "expected"),
    [
        ("x86_64", "avx2", "", True),
        ("AMD64", "avx2 avx_vnni", "", False),
        ("x86_64", "avx512_vnni", "", False),
        ("x86_64", "avx512_vnni", "avx512_core", True),
        ("x86_64", "avx512_vnni", "AVX512_CORE_VNNI", False),
        ("aarch64", "", "", False),
    ],
)
def test_who_overflows(
    machine: str, flags: str, kept: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags\t\t: {flags}\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", kept)
    processor.has_vnni.cache_clear()
    try:
        assert processor.onednn_saturates() is expected
    finally:
        processor.has_vnni.cache_clear()
