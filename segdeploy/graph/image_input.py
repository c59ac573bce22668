"""The `image` contract as graph nodes: uint8 NHWC RGB in, everything after the resize inside.

The same float32 operations in the same order as `core.preprocess.normalize_image`, so both agree
to the last bit wherever the runtime does not fuse. Cast comes before Transpose: TensorRT refuses
to permute uint8. Applied after the precision passes, so it stays float32 in every precision.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.proto import check_graph, copy_model, replace_nodes, tensor_names


def add_image_input(
    model: onnx.ModelProto, preprocess: PreprocessSpec, name: str = "image"
) -> onnx.ModelProto:
    """Return the graph with a uint8 NHWC input `name` in place of its float32 NCHW input.

    Raises:
        BuildError: If the graph has not exactly one float32 input of 4 dimensions and 3 channels.
    """
    changed = copy_model(model)
    graph = changed.graph
    old = _only_input(graph)
    batch, _, height, width = old.type.tensor_type.shape.dim
    sizes = [d.dim_param or d.dim_value for d in (batch, height, width)] + [3]
    nodes, constants = _normalization(preprocess, name, old.name)
    if {c.name for c in constants} & set(tensor_names(graph)):
        raise BuildError("The graph has an image input already.")
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, sizes))
    graph.value_info.append(old)
    graph.initializer.extend(constants)
    replace_nodes(graph, [*nodes, *graph.node])
    return check_graph(changed, "The image input")


def _only_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    stored = {t.name for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) == 1:
        kind = inputs[0].type.tensor_type
        dims = kind.shape.dim
        if kind.elem_type == TensorProto.FLOAT and len(dims) == 4 and dims[1].dim_value == 3:
            found = onnx.ValueInfoProto()
            found.CopyFrom(inputs[0])
            return found
    raise BuildError(
        "An image input needs a graph with one float32 input N x 3 x H x W, "
        f"found {[value.name for value in inputs]}."
    )


def _normalization(
    preprocess: PreprocessSpec, source: str, result: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    constants = {
        "image_scale": np.float32(preprocess.scale),
        "image_mean": np.asarray(preprocess.mean, np.float32),
        "image_std": np.asarray(preprocess.std, np.float32),
    }
    nodes = [helper.make_node("Cast", [source], ["image_float"], to=TensorProto.FLOAT)]
    pixels = "image_float"
    if preprocess.channel_order == "bgr":
        constants["image_order"] = np.asarray([2, 1, 0], np.int64)
        nodes.append(helper.make_node("Gather", [pixels, "image_order"], ["image_bgr"], axis=3))
        pixels = "image_bgr"
    nodes += [
        helper.make_node("Mul", [pixels, "image_scale"], ["image_scaled"]),
        helper.make_node("Sub", ["image_scaled", "image_mean"], ["image_centred"]),
        helper.make_node("Div", ["image_centred", "image_std"], ["image_normalized"]),
        helper.make_node("Transpose", ["image_normalized"], [result], perm=[0, 3, 1, 2]),
    ]
    for node in nodes:
        node.name = f"input_{node.op_type.lower()}"
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    return nodes, stored
