"""A graph that takes uint8 pixels and makes floats of them can take the floats.

Under the `tensor` contract its input is float32 and holds whole numbers of 0..255, since such a
model normalises by itself. The way there and back through uint8 then changes nothing, and runtimes
that know no uint8 (TensorRT, most NPUs) refuse it.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    producers,
    rename_input,
    replace_nodes,
)

PIXELS = "pixels_uint8"
"""Name of the tensor that `graph.ends.wrap_ends` casts to uint8."""


def drop_pixel_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the cast to uint8, if all that reads it makes float32 of it."""
    changed = copy_model(model)
    graph = changed.graph
    cast = producers(graph).get(PIXELS)
    readers = consumers(graph).get(PIXELS, [])
    if cast is None or not all(_is_float_cast(node) for node in readers):
        return changed
    gone = {PIXELS, *(node.output[0] for node in readers)}
    if gone & {value.name for value in graph.output}:
        return changed
    for node in graph.node:
        for name in gone:
            rename_input(node, name, cast.input[0])
    replace_nodes(graph, [node for node in graph.node if not gone & set(node.output)])
    return changed


def _is_float_cast(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT
