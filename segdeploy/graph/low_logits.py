"""The `low-logits` contract as graph surgery: the last bilinear Resize is cut off.

Legal only where nothing else happens to the logits: the output is a Resize of height and width,
linear, without antialias, by one of the rules that `upsampling` knows, with at most Identity and
Cast behind it. Applied after the precision passes; the new output is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import onnx
from onnx import TensorProto, helper

from segdeploy.core.errors import BuildError, UnsupportedTargetError
from segdeploy.graph.constant_folding import remove_unused
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import (
    attribute,
    copy_model,
    element_types,
    initializers,
    producers,
    to_array,
)

LOW_LOGITS = "low_logits"
CONTRACT = PassContract("The cut before the last upsampling", changes_output=True)
_PASSED = {"Identity", "Cast"}
_RULES = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}


@dataclass(frozen=True)
class LastResize:
    """What a graph ends with: the tensor before it, and which rule places the pixels."""

    tensor: str
    align_corners: bool


def find_last_resize(model: onnx.ModelProto) -> LastResize:
    """Return the upsampling that makes the only output.

    Raises:
        UnsupportedTargetError: If it is made otherwise; the message says how.
    """
    graph = model.graph
    made = producers(graph)
    node = made.get(graph.output[0].name)
    while node is not None and node.op_type in _PASSED:
        node = made.get(node.input[0])
    if node is None or node.op_type != "Resize":
        _refuse(f"they come from {node.op_type if node else 'its input'}, not from a Resize")
    mode, rule = (
        attribute(node, name, default).decode()
        for name, default in (
            ("mode", b"nearest"),
            ("coordinate_transformation_mode", b"half_pixel"),
        )
    )
    if mode != "linear" or rule not in _RULES or attribute(node, "antialias", 0):
        smooth = " with antialias" if attribute(node, "antialias", 0) else ""
        _refuse(f"the last Resize is {mode}, {rule}{smooth}")
    if attribute(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        _refuse("the last Resize keeps the ratio of the sides")
    if not _resizes_height_and_width(model, node):
        _refuse("the last Resize changes more than height and width")
    if not _RULES[rule] and not _goes_by_sizes(model, node):
        _refuse("the scales of the last Resize are not the ratio of its sizes")
    return LastResize(node.input[0], _RULES[rule])


def low_size(model: onnx.ModelProto, found: LastResize) -> tuple[int, int] | None:
    """Return (h, w) of the logits before the last Resize, or None where they are dynamic."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in inferred.value_info:
        if value.name == found.tensor and len(_dims(value)) == 4:
            height, width = (dim.dim_value for dim in _dims(value)[2:])
            return (height, width) if height and width else None
    return None


def cut_low_logits(
    model: onnx.ModelProto, align_corners: bool, size: tuple[int, int] | None
) -> onnx.ModelProto:
    """Return the graph with `low_logits` (float32, N x K x h x w) in place of its logits.

    Args:
        model: Has one output N x K x H x W.
        align_corners: What the manifest says of the upsampling.
        size: (h, w), or None where they are dynamic.

    Raises:
        UnsupportedTargetError: If its logits are no upsampled ones.
        BuildError: If the graph has several outputs, or upsamples by another rule.
    """
    if len(model.graph.output) != 1:
        raise BuildError(f"A graph of {len(model.graph.output)} outputs has no logits to cut.")
    found = find_last_resize(model)
    if found.align_corners != align_corners:
        raise BuildError(
            f"The graph upsamples with align_corners={found.align_corners}, and its model with "
            f"align_corners={align_corners}."
        )
    changed = copy_model(model)
    graph = changed.graph
    batch, channels = (d.dim_param or d.dim_value for d in _dims(graph.output[0])[:2])
    is_float = element_types(model).get(found.tensor) == TensorProto.FLOAT
    last = helper.make_node(
        "Identity" if is_float else "Cast", [found.tensor], [LOW_LOGITS], f"output_{LOW_LOGITS}"
    )
    if not is_float:
        last.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    del graph.output[:]
    sides = size or ("h", "w")
    graph.output.append(
        helper.make_tensor_value_info(LOW_LOGITS, TensorProto.FLOAT, [batch, channels, *sides])
    )
    graph.node.append(last)
    remove_unused(graph)
    return CONTRACT.check_after(model, changed)


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _resizes_height_and_width(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Return whether N and K stay: said by the axes, or by what is known of scales and shapes."""
    axes = attribute(node, "axes")
    if axes is not None:
        return sorted(axis % 4 for axis in axes) == [2, 3]
    stored = initializers(model.graph)
    scales = stored.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scales is not None:
        kept: list[float] = to_array(scales)[:2].tolist()
        return kept == [1, 1]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = {v.name: v for v in [*inferred.value_info, *inferred.output, *inferred.input]}
    before, after = values.get(node.input[0]), values.get(node.output[0])
    if before is None or after is None or len(_dims(before)) != 4 or len(_dims(after)) != 4:
        return False
    channels = {int(_dims(value)[1].dim_value) for value in (before, after)}
    return len(channels) == 1 and channels != {0}


def _goes_by_sizes(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Return whether pixels are placed by the ratio of the sizes, as the label kernel does.

    A Resize by scales places them by these: 4.7 times 10 is 47, but 4.7 times 11 is 51. Whole
    numbers are the ratio of any sizes, others of those known sizes that they are computed from.
    """
    if len(node.input) > 3 and node.input[3]:
        return True
    scales = initializers(model.graph).get(node.input[2])
    if scales is None:
        return False
    sides = [float(scale) for scale in to_array(scales).astype(np.float32)[-2:]]
    if all(side.is_integer() for side in sides):
        return True
    known = low_size(model, LastResize(node.input[0], align_corners=False))
    return known is not None and all(
        np.float32(np.floor(low * side) / low) == np.float32(side)
        for low, side in zip(known, sides, strict=True)
    )


def _refuse(why: str) -> NoReturn:
    raise UnsupportedTargetError(
        f"The logits cannot be given at low resolution: {why}.",
        hint="Use --output logits or labels: a network whose head works at full resolution has no "
        "low-resolution logits.",
    )
