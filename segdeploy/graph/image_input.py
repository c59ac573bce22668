"""The `image` contract as graph nodes: uint8 NHWC RGB in, everything after the resize inside.

The same float32 operations in the same order as `core.preprocess.normalize_image`, so both agree
to the last bit wherever the runtime does not fuse; what would change nothing (a scale of 1, a mean
of 0) is left out. Cast comes before Transpose: TensorRT refuses to permute uint8. The arithmetic
comes after it: over channels-last pixels it would go three numbers at a time (LRASPP at 360x480,
one thread: 4-5 ms of 38). Applied after the precision passes, so it stays float32 in every
precision; `fold_normalization` leaves little to do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import copy_model, replace_nodes, tensor_names

CONTRACT = PassContract("The image input", changes_input=True)


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
    made = {c.name for c in constants} | {node.output[0] for node in nodes[:-1]}
    if made & set(tensor_names(graph)):
        raise BuildError("The graph has an image input already.")
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, sizes))
    graph.value_info.append(old)
    graph.initializer.extend(constants)
    replace_nodes(graph, [*nodes, *graph.node])
    return CONTRACT.check_after(model, changed)


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
    nodes = [
        helper.make_node("Cast", [source], ["image_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["image_float"], ["image_planes"], perm=[0, 3, 1, 2]),
    ]
    constants: dict[str, NDArray[Any]] = {}

    def add(operator: str, constant: str, values: NDArray[Any], made: str) -> None:
        constants[constant] = values
        nodes.append(helper.make_node(operator, [nodes[-1].output[0], constant], [made]))

    if preprocess.channel_order == "bgr":
        add("Gather", "image_order", np.asarray([2, 1, 0], np.int64), "image_bgr")
        nodes[-1].attribute.append(helper.make_attribute("axis", 1))
    if preprocess.scale != 1:
        add("Mul", "image_scale", np.asarray(preprocess.scale, np.float32), "image_scaled")
    if any(preprocess.mean):
        add("Sub", "image_mean", _by_channel(preprocess.mean), "image_centred")
    if any(value != 1 for value in preprocess.std):
        add("Div", "image_std", _by_channel(preprocess.std), "image_normalized")
    nodes[-1].output[0] = result
    for node in nodes:
        node.name = f"input_{node.op_type.lower()}"
    return nodes, [numpy_helper.from_array(values, name) for name, values in constants.items()]


def _by_channel(values: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(3, 1, 1)
