"""The two ends of a graph: which part of it is used, what its tensors are called, which sizes.

A plain graph takes `tensor` (float32 N x 3 x H x W) and gives `logits` (float32 N x K x H x W).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import BuildError
from segdeploy.graph.constant_folding import remove_unused
from segdeploy.graph.pixel_casts import PIXELS
from segdeploy.graph.proto import copy_model, replace_nodes, tensor_names

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_LETTERS = ("N", "", "H", "W")
_RESERVED = {
    "tensor", "logits", "nhwc_tensor", "nchw_logits", "model_logits", "coarse_ends", "fine_ends",
    "fine_sizes", "two_axes", PIXELS,
    # Of the `image` and `labels` contracts (image_input.py, label_output.py), which come last.
    "image", "image_float", "image_planes", "image_order", "image_bgr", "image_scale",
    "image_scaled", "image_mean", "image_centred", "image_std", "image_normalized",
    "labels", "confidence", "label_index", "output_class_axis", "output_zero", "foreground",
    "is_foreground", "top_logit", "below_top", "relative_odds", "sum_of_odds", "binary_margin",
    "foreground_odds",
}  # fmt: skip


def keep_path(model: onnx.ModelProto, source: str, result: str) -> onnx.ModelProto:
    """Return the graph with one input and one output, without what the output does not need.

    Raises:
        BuildError: If the output needs other inputs too.
    """
    changed = copy_model(model)
    graph = changed.graph
    stored = {tensor.name for tensor in graph.initializer}
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=result))  # Its type is for inference to find.
    remove_unused(graph)
    used = {name for node in graph.node for name in node.input}
    inputs = [v for v in graph.input if v.name not in stored and v.name in used]
    if [value.name for value in inputs] != [source]:
        found = ", ".join(f"'{value.name}'" for value in inputs) or "none"
        raise BuildError(
            f"The output '{result}' depends on the inputs {found}, not '{source}' alone."
        )
    only = onnx.ValueInfoProto()
    only.CopyFrom(inputs[0])
    del graph.input[:]
    graph.input.append(only)
    return changed


def set_input_sizes(
    model: onnx.ModelProto, sizes: Sequence[int | None], letters: Sequence[str]
) -> onnx.ModelProto:
    """Set the sizes of the only input, in place; None is dynamic, and named by its letter.

    Known shapes of inner tensors are dropped: they may say otherwise, or use the same names.
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, side, letter in zip(dims, sizes, letters, strict=True):
        dim.Clear()
        if side is None:
            dim.dim_param = letter
        else:
            dim.dim_value = side
    del model.graph.value_info[:]
    return model


def wrap_ends(
    model: onnx.ModelProto,
    *,
    input_is_nhwc: bool = False,
    output_is_nhwc: bool = False,
    upsample: bool = False,
) -> onnx.ModelProto:
    """Return the graph with `tensor` and `logits`, both float32 NCHW, at its ends.

    Args:
        model: One input (float32, or uint8 pixels) and one float32 output of four dimensions.
        input_is_nhwc: Its input is channels-last.
        output_is_nhwc: Its output is channels-last.
        upsample: Resize the logits to the image's size: bilinear, half-pixel centres.
    """
    changed = copy_model(model)
    graph = changed.graph
    is_uint8 = graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    placed = "nhwc_tensor" if input_is_nhwc else "tensor"
    first = PIXELS if is_uint8 else placed
    last = "model_logits" if output_is_nhwc or upsample else "logits"
    _rename(graph, {graph.input[0].name: first, graph.output[0].name: last})
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    head: list[onnx.NodeProto] = []
    tail: list[onnx.NodeProto] = []
    if input_is_nhwc:
        dims = [dims[axis] for axis in _TO_NCHW]
        head.append(_transpose("tensor", placed, _TO_NHWC))
    if is_uint8:
        head.append(
            helper.make_node("Cast", [placed], [PIXELS], name="to_pixels", to=TensorProto.UINT8)
        )
    if output_is_nhwc:
        result = "nchw_logits" if upsample else "logits"
        tail.append(_transpose(last, result, _TO_NCHW))
        last = result
    if upsample:
        tail += _resize(graph, last, "logits")
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("tensor", TensorProto.FLOAT, dims))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * 4))
    replace_nodes(graph, [*head, *graph.node, *tail])
    return changed


def _transpose(source: str, result: str, perm: tuple[int, ...]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], name=f"to_{result}", perm=perm)


def _resize(graph: onnx.GraphProto, source: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that bring (N, K, h, w) to the H and W of `tensor`."""
    graph.initializer.append(numpy_helper.from_array(np.asarray([0, 1], np.int64), "two_axes"))
    return [
        helper.make_node("Shape", [source], ["coarse_ends"], name="coarse_ends", start=0, end=2),
        helper.make_node("Shape", ["tensor"], ["fine_ends"], name="fine_ends", start=2, end=4),
        helper.make_node(
            "Concat", ["coarse_ends", "fine_ends"], ["fine_sizes"], name="fine_sizes", axis=0
        ),
        helper.make_node(
            "Resize", [source, "", "", "fine_sizes"], [result], name="upsample_logits",
            mode="linear", coordinate_transformation_mode="half_pixel",
        ),
    ]  # fmt: skip


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename tensors everywhere, in place; others that have one of our names get another."""
    taken = set(tensor_names(graph)) | _RESERVED
    mapping = {}
    for name in sorted(_RESERVED & set(tensor_names(graph))):
        mapping[name] = name
        while mapping[name] in taken:
            mapping[name] += "_"
        taken.add(mapping[name])
    mapping |= names
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.name = mapping.get(value.name, value.name)
    for node in graph.node:
        for part in (node.input, node.output):
            for index, name in enumerate(part):
                part[index] = mapping.get(name, name)


def state_ends(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """Write the contract's sizes into input and output, in place: dynamic ones are N, H, W.

    Raises:
        BuildError: If the graph's ends have other names or ranks.
    """
    values = [*model.graph.input, *model.graph.output]
    if [value.name for value in values] != [spec.name for spec in specs]:
        raise BuildError(f"The graph's ends are {[value.name for value in values]}.")
    for value, spec in zip(values, specs, strict=True):
        kind = value.type.tensor_type
        kind.elem_type = TensorProto.FLOAT
        kind.shape.Clear()
        for side, letter in zip(spec.shape, _LETTERS, strict=True):
            dim = kind.shape.dim.add()
            if side is None:
                dim.dim_param = letter
            else:
                dim.dim_value = side
    return model


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node without a name of its own one, in place."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type.lower()}_{index}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
    return model
