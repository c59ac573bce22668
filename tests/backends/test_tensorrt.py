"""TensorRT's own parser and builder, on the CPU: what builds, what is refused, in whose words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segdeploy.backends import open_session
from segdeploy.backends.isolation import Builder
from segdeploy.backends.tensorrt import TENSORRT
from segdeploy.backends.tensorrt_plan import read_plan
from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import (
    BackendUnavailableError,
    BuildError,
    ConfigError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.core.task import Task
from segdeploy.export import export
from segdeploy.frameworks.cuda import find_gpu
from segdeploy.graph.fp16 import float32_nodes
from segdeploy.graph.proto import load_graph
from segdeploy.zoo import create_model, save_checkpoint

TARGETS = ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"]
IMAGES = IoContract(InputKind.IMAGE, OutputKind.LABELS)
RANGE = SizeBounds((64, 64), (96, 128), (160, 192))
CORE_SIX = (
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50",
    "fcn_resnet50", "unet", "u2net_lite",
)  # fmt: skip
needs_no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="needs a machine without GPU")


@pytest.fixture
def builder() -> Builder:
    return Builder(limit_s=120)


Ask = Callable[[onnx.ModelProto], BuildRequest]


@pytest.fixture
def ask(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Ask:
    """A request for a graph of one's own, 1 x 3 x 32 x 48."""

    def request(model: onnx.ModelProto) -> BuildRequest:
        graph = tmp_path / "graph.onnx"
        graph.write_bytes(model.SerializeToString())
        return BuildRequest(
            checkpoint=tiny_checkpoint, payload=tmp_path / "model.plan", precision=Precision.FP32,
            io=IoContract(), size=(32, 48), graph=graph,
        )  # fmt: skip

    return request


def _graph(
    nodes: list[onnx.NodeProto],
    stored: dict[str, np.ndarray] | None = None,
    output: int = TensorProto.FLOAT,
    *,
    image: bool = False,
) -> onnx.ModelProto:
    """A graph from `x` to `y`, opset 18."""
    value = helper.make_tensor_value_info
    given = (
        value("x", TensorProto.UINT8, ["N", "H", "W", 3])
        if image
        else value("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    )
    graph = helper.make_graph(
        nodes, "own", [given], [value("y", output, None)],
        [numpy_helper.from_array(v, n) for n, v in (stored or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _quantized(zero: int) -> onnx.ModelProto:
    scales = {"s": np.float32(0.1), "z": np.asarray(zero, np.int8)}
    return _graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_pixels"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dequantize_pixels"),
        ],
        {name: np.asarray(value) for name, value in scales.items()},
    )


@needs_no_gpu
@pytest.mark.usefixtures("tensorrt")
def test_opening_without_a_gpu_names_it(
    tiny_checkpoint: Checkpoint, tmp_path: Path, builder: Builder
) -> None:
    outcome = _identity_artifact(tiny_checkpoint, tmp_path, builder)
    for device in ("cpu", "cuda", "cuda:1"):
        with pytest.raises(BackendUnavailableError, match=r"needs an NVIDIA GPU.*error 35"):
            open_session(load_artifact(outcome), device, isolated=True)


def _identity_artifact(checkpoint: Checkpoint, tmp_path: Path, builder: Builder) -> Path:
    """An artifact folder with an engine that does nothing."""
    from segdeploy.core.contract import contract_tensors
    from segdeploy.core.folder import save_folder

    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, (32, 48), batch=1)
    manifest = checkpoint.manifest.replace(
        kind="artifact", target="tensorrt-fp32", classes=("a", "b", "c"),
        inputs=inputs, outputs=outputs, files={"model.plan": ""}, companions={},
    )  # fmt: skip
    model = _graph([helper.make_node("Identity", ["tensor"], ["logits"], name="same")])
    model.graph.input[0].name, model.graph.output[0].name = "tensor", "logits"
    graph = tmp_path / "identity.onnx"
    graph.write_bytes(model.SerializeToString())

    def write(folder: Path) -> None:
        builder.build(
            TENSORRT,
            BuildRequest(
                checkpoint=checkpoint, payload=folder / "model.plan", precision=Precision.FP32,
                io=IoContract(), size=(32, 48), graph=graph,
            ),
        )  # fmt: skip

    return save_folder(tmp_path / "identity", manifest, write).path


def _transposed_first() -> onnx.ModelProto:
    return _graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], name="to_nchw", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["t"], ["y"], name="to_float", to=TensorProto.FLOAT),
        ],
        image=True,
    )


def _unknown() -> onnx.ModelProto:
    return _graph([helper.make_node("Det", ["x"], ["y"], name="determinant")])


@pytest.mark.usefixtures("tensorrt")
def test_what_is_refused_is_told_in_tensorrts_own_words(builder: Builder, ask: Ask) -> None:
    for model, io, words in (
        (_quantized(3), IoContract(), "quantize_pixels.*QuantizeLinear.*zero point"),
        (_unknown(), IoContract(), "determinant.*Det"),
        (_transposed_first(), IMAGES, "UInt8"),
    ):
        request = dataclasses.replace(ask(model), io=io)
        with pytest.raises(BuildError, match=r"model\.plan") as caught:
            builder.build(TENSORRT, request)
        assert re.search(words, str(caught.value), re.DOTALL)
        assert not request.payload.exists()
    builder.build(TENSORRT, ask(_quantized(0)))  # The same graph with what the rules ask.


@pytest.mark.usefixtures("tensorrt")
def test_a_failed_build_carries_the_builders_log(builder: Builder, ask: Ask) -> None:
    """The parser cannot know: the sizes are set after it."""
    model = _graph(
        [helper.make_node("Reshape", ["x", "sizes"], ["y"], name="impossible")],
        {"sizes": np.asarray([1, 3, 7, 7], np.int64)},
    )
    with pytest.raises(BuildError, match=r"cannot build model\.plan") as caught:
        builder.build(TENSORRT, ask(model))
    assert "[ERROR]" in caught.value.log
    assert re.search("reshape|impossible", caught.value.log)


@pytest.mark.usefixtures("tensorrt")
def test_sizes_that_the_graph_cannot_take_and_bad_limits_are_refused(
    builder: Builder, ask: Ask
) -> None:
    fixed = _quantized(0)
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 40
    with pytest.raises(BuildError, match=r"takes \(-1, 3, 40, -1\)"):
        builder.build(TENSORRT, ask(fixed))
    request = dataclasses.replace(ask(_quantized(0)), options={"workspace_mib": "much"})
    with pytest.raises(ConfigError, match="workspace limit"):
        builder.build(TENSORRT, request)
    builder.build(TENSORRT, dataclasses.replace(request, options={"workspace_mib": 64}))
    assert read_plan(request.payload)[0]["workspace_mib"] == 64


@pytest.mark.usefixtures("tensorrt")
def test_labels_of_many_classes_leave_the_engine_as_int32(builder: Builder, ask: Ask) -> None:
    """TensorRT has no uint16; its parser says so of the graph as it is."""
    model = _graph(
        [
            helper.make_node("ArgMax", ["x"], ["i"], name="decide", axis=1, keepdims=0),
            helper.make_node("Cast", ["i"], ["y"], name="narrow", to=TensorProto.UINT16),
        ],
        output=TensorProto.UINT16,
    )
    builder.build(TENSORRT, ask(model))


def test_any_size_is_refused_before_anything_is_built(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedTargetError, match="range of sizes"):
        export(tiny_checkpoint.path, ["tensorrt-fp16"], tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("model", CORE_SIX)
def test_the_core_six_parse_and_build_static_and_with_a_range(model: str, tmp_path: Path) -> None:
    checkpoint = _save(tmp_path / "checkpoint", model)
    for size, max_batch, io in (
        ((96, 128), 1, None), (RANGE, 2, None), ((96, 128), 1, IMAGES), (RANGE, 1, IMAGES),
    ):  # fmt: skip
        made = export(
            checkpoint.path, TARGETS, tmp_path, size=size, max_batch=max_batch, io=io,
            calibration="synthetic:96x128", num_calibration_images=2,
        )  # fmt: skip
        assert [each.target for each in made if each.requested] == TARGETS
        for each in made[:3]:
            header, engine = read_plan(each.path / "model.plan")
            (shapes,) = header["profile"].values()
            assert shapes[2][0] == max_batch
            assert (shapes[0] == shapes[2]) == isinstance(size, tuple)
            assert len(engine) > 1e5


@pytest.mark.slow
@pytest.mark.parametrize("model", CORE_SIX)
def test_no_node_of_the_core_six_is_left_in_float32_by_accident(model: str, tmp_path: Path) -> None:
    from segdeploy.export.calibration import open_calibration
    from segdeploy.export.graphs import convert_precision, find_ranges

    checkpoint = _save(tmp_path / "checkpoint", model)
    made = export(checkpoint.path, ["onnx-fp32"], tmp_path, size=(96, 128))
    plain = load_graph(made[0].path / "model.onnx")
    images = open_calibration("synthetic:96x128", 2)
    for precision in (Precision.FP16, Precision.INT8):
        graph, _ = convert_precision(
            plain, precision, lambda: find_ranges(plain, images, PreprocessSpec(), None),
            Precision.FP16,
        )  # fmt: skip
        assert float32_nodes(graph) == []


def _save(path: Path, name: str) -> Checkpoint:
    torch.manual_seed(0)
    module = create_model(name, 5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    saved: Checkpoint = save_checkpoint(
        path, module, model=name, task=Task.MULTICLASS, classes=tuple("abcde"),
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return saved
