"""The cut before the last Resize: the same decisions as the whole graph, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.backends.contract_module import find_upsampling
from segdeploy.backends.onnx_export import export_checkpoint
from segdeploy.core.errors import BuildError, UnsupportedTargetError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task, decision_margin
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.low_logits import cut_low_logits, find_last_resize
from segdeploy.graph.low_logits import low_size as size_in_graph
from segdeploy.upsampling import reference_labels, upsample_logits
from segdeploy.zoo import create_model, save_checkpoint

SIZE = (97, 130)
SLOW = (
    "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "deeplabv3plus_resnet34", "fpn_resnet34",
    "segformer_mit_b0", "upernet_resnet34",
)  # fmt: skip
ENDING = [
    "lraspp_mobilenet_v3_small",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("pspnet_resnet18", *SLOW)),
]


def _export(name: str, folder: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    module = create_model(name, 5)
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None
        module.train()(torch.rand(4, 3, 96, 96) * 4 - 2)  # Sane statistics.
    checkpoint = save_checkpoint(
        folder / "checkpoint", module.eval(), model=name, task=Task.MULTICLASS,
        classes=tuple("abcde"), preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    model: onnx.ModelProto = export_checkpoint(checkpoint, SIZE)
    return model


def _run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: np.ndarray = session.run(None, {"tensor": batch})[0]
    return found


@pytest.mark.parametrize("name", ENDING)
def test_models_of_the_zoo_decide_as_before(name: str, tmp_path: Path) -> None:
    whole = _export(name, tmp_path)
    last = find_last_resize(whole)
    found, low_size = find_upsampling(create_model(name, 5), SIZE)
    assert found.align_corners == last.align_corners
    assert size_in_graph(whole, last) in {None, low_size}
    cut = cut_low_logits(whole, last.align_corners, low_size)
    assert [(v.name, len(cut.graph.output)) for v in cut.graph.output] == [("low_logits", 1)]
    assert len(cut.graph.node) <= len(whole.graph.node)
    batch = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    logits, low = _run(whole, batch), _run(cut, batch)
    assert low.shape == (2, 5, *low_size)
    labels = reference_labels(low, SIZE, align_corners=last.align_corners, task=Task.MULTICLASS)
    differ = labels != logits.argmax(axis=1)
    # ONNX Runtime's Resize rounds otherwise than the reference: near a tie, and nowhere else.
    full = upsample_logits(low, SIZE, align_corners=last.align_corners)
    assert np.abs(full - logits).max() < 3e-5 * np.abs(logits).max()
    assert decision_margin(full, Task.MULTICLASS)[differ].max(initial=0) < 3e-5 * np.abs(full).max()
    assert differ.sum() <= 3


@pytest.mark.parametrize("name", ["unet", "u2net_lite"])
def test_networks_with_a_full_resolution_head_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedTargetError, match="low resolution"):
        find_upsampling(create_model(name, 5), (64, 96))


def _tail(
    mode: str = "linear",
    rule: str = "half_pixel",
    behind: str | None = None,
    scales: tuple[float, ...] = (1, 1, 4, 4),
    antialias: int = 0,
) -> onnx.ModelProto:
    ends = [("tensor", [1, 3, 8, 8]), ("logits", [1, 3, 32, 32])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends]
    nodes = [
        helper.make_node("Neg", ["tensor"], ["low"]),
        helper.make_node("Resize", ["low", "", "scales"], ["wide" if behind else "logits"],
                         mode=mode, coordinate_transformation_mode=rule, antialias=antialias),
    ]  # fmt: skip
    if behind:
        nodes.append(helper.make_node(behind, ["wide"], ["logits"]))
    stored = [numpy_helper.from_array(np.asarray(scales, np.float32), "scales")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"mode": "nearest"}, "nearest"),
        ({"mode": "cubic"}, "cubic"),
        ({"rule": "asymmetric"}, "asymmetric"),
        ({"antialias": 1}, "antialias"),
        ({"behind": "Sigmoid"}, "Sigmoid"),
        ({"scales": (1, 2, 4, 4)}, "more than height and width"),
    ],
)
def test_other_endings_are_refused_by_name(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(UnsupportedTargetError, match=why):
        find_last_resize(_tail(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["half_pixel", "align_corners"])
def test_scales_that_are_not_the_ratio_of_the_sizes_place_pixels_otherwise(rule: str) -> None:
    """By scales of 4.05 an 8 x 8 map is 32 x 32, too: but its pixels lie elsewhere."""
    model = _tail(rule=rule, scales=(1, 1, 4.05, 4.05))
    if rule == "align_corners":  # It looks at the sizes alone.
        assert find_last_resize(model).align_corners
        return
    with pytest.raises(UnsupportedTargetError, match="ratio of its sizes"):
        find_last_resize(model)
    exact = 37 / 8  # No whole number, and the ratio all the same.
    assert not find_last_resize(_tail(scales=(1, 1, 4, exact))).align_corners


def _resized(
    inputs: list[str],
    shape: list[int | str],
    before: list[int | str] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One linear Resize, said by scales or sizes, of all axes or of some."""
    ends = [("tensor", before or ["N", 3, 8, 8]), ("logits", shape)]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends]
    node = helper.make_node("Resize", inputs, ["logits"], **{"mode": "linear", **attributes})
    sides: dict[str, NDArray[Any]] = {
        "scales": np.asarray([4, 4], np.float32),
        "sizes": np.asarray([32, 32], np.int64),
        "all_sizes": np.asarray([1, 3, 32, 32], np.int64),
    }
    stored = [numpy_helper.from_array(v, n) for n, v in sides.items() if n in inputs]
    graph = helper.make_graph([node], "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


SCALES, SIZES = ["tensor", "", "scales"], ["tensor", "", "", "sizes"]


@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-2, -1]])
def test_axes_say_what_is_resized(axes: list[int]) -> None:
    assert find_last_resize(_resized(SCALES, ["N", 3, 32, 32], axes=axes)).tensor == "tensor"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (_resized(SCALES, ["N", 12, 32, 8], axes=[1, 2]), "more than height and width"),
        (_resized(SIZES, ["N", 3, 32, 32], axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
         "ratio of the sides"),
        (_resized(["tensor", "", "", "all_sizes"], ["N", 3, 32, 32], ["N", "K", 8, 8]),
         "more than height and width"),
        (_resized(SCALES, ["N", 3, 32, 32], axes=[2, 3], mode="nearest"), "nearest, half_pixel"),
    ],
)  # fmt: skip
def test_resizes_of_other_axes_or_ratios_are_refused(model: onnx.ModelProto, why: str) -> None:
    with pytest.raises(UnsupportedTargetError, match=why):
        find_last_resize(model)


def test_a_rule_that_is_not_said_is_half_pixel_and_a_mode_is_nearest() -> None:
    model = _resized(SCALES, ["N", 3, 32, 32], axes=[2, 3])
    assert not find_last_resize(model).align_corners
    del model.graph.node[0].attribute[:]
    with pytest.raises(UnsupportedTargetError, match="nearest"):
        find_last_resize(model)


def test_a_cut_graph_says_its_shape_as_far_as_it_is_known() -> None:
    model = _tail()
    assert size_in_graph(model, find_last_resize(model)) == (8, 8)
    assert _shape(cut_low_logits(model, False, (8, 8))) == [1, 3, 8, 8]
    dynamic = _tail()
    for value in (dynamic.graph.input[0], dynamic.graph.output[0]):
        for index, name in ((0, "N"), (2, "H"), (3, "W")):
            value.type.tensor_type.shape.dim[index].dim_param = name
    assert size_in_graph(dynamic, find_last_resize(dynamic)) is None
    assert _shape(cut_low_logits(dynamic, False, None)) == ["N", 3, "h", "w"]


def _shape(model: onnx.ModelProto) -> list[int | str]:
    (output,) = model.graph.output
    return [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]


def test_a_graph_of_two_outputs_is_not_cut() -> None:
    model = _tail()
    model.graph.output.append(helper.make_tensor_value_info("low", TensorProto.FLOAT, None))
    with pytest.raises(BuildError, match="2 outputs"):
        cut_low_logits(model, align_corners=False, size=None)


@pytest.mark.parametrize("rule", ["half_pixel", "pytorch_half_pixel", "align_corners"])
@pytest.mark.parametrize("behind", [None, "Identity"])
def test_endings_that_are_cut(rule: str, behind: str | None) -> None:
    model = _tail(rule=rule, behind=behind)
    is_aligned = rule == "align_corners"
    cut = cut_low_logits(model, is_aligned, (8, 8))
    assert [node.op_type for node in cut.graph.node] == ["Neg", "Identity"]
    batch = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    full = upsample_logits(_run(cut, batch), (32, 32), align_corners=is_aligned)
    # A coordinate below 8 is rounded once, in another order of multiplying and dividing.
    steepest = float(np.ptp(batch))
    np.testing.assert_allclose(full, _run(model, batch), rtol=0, atol=8 * 2.0**-23 * steepest)


def test_a_graph_that_contradicts_its_model_is_not_cut() -> None:
    with pytest.raises(BuildError, match="align_corners"):
        cut_low_logits(_tail(), align_corners=True, size=None)


def test_low_logits_of_an_fp16_graph_are_float32() -> None:
    cut = cut_low_logits(cast_to_fp16(_tail()), align_corners=False, size=(8, 8))
    assert cut.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    batch = np.random.default_rng(2).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(_run(cut, batch), -batch, atol=1e-2)
