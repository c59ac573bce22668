"""An int8 graph as ONNX Runtime's CPU kernels want it, made when a session opens; no file changes.

Four exchanges, each for a measured reason, none for the meaning of the graph (`verify` judges what
runs, and fused kernels round by themselves):

* x86 wants unsigned activations (`u8_activations`).
* A Relu before QuantizeLinear keeps its convolution in float where zero is not the least byte. It
  commutes exactly with rounding, so it moves behind it and becomes a Clip of bytes at the zero
  point. So does Clip(0, c), where the largest byte does not stand for more than c.
* An int8 weight of a convolution on a float input would be dequantised in every run: it becomes a
  float constant.
* HardSwish and SiLU between Q/DQ run on bytes (`integer_activations`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.integer_activations import use_integer_activations
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    initializers,
    producers,
    replace_initializers,
    replace_nodes,
    to_array,
)
from segdeploy.graph.u8_activations import use_u8_activations

_FUSING = {"Conv", "ConvTranspose", "Gemm"}
_LARGEST = 255


def use_byte_kernels(model: onnx.ModelProto, *, unsigned: bool) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime runs fastest on a CPU.

    Args:
        model: With Q/DQ; a float graph comes back as it is.
        unsigned: Whether the kernels want U8 activations: on x86.
    """
    if all(node.op_type != "QuantizeLinear" for node in model.graph.node):
        return model
    changed = use_u8_activations(model) if unsigned else copy_model(model)
    _move_relus(changed.graph)
    _fold_weights(changed.graph)
    return use_integer_activations(changed)


def _move_relus(graph: onnx.GraphProto) -> None:
    """Turn Conv -> Relu -> Q into Conv -> Q -> Clip(zero point), where nothing else reads them."""
    made, readers, stored = producers(graph), consumers(graph), initializers(graph)
    kept_names = {value.name for value in graph.output}
    gone: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "QuantizeLinear" or not _has_middle_zero(node, stored):
            continue
        relu = made.get(node.input[0])
        if relu is None or not _is_relu(relu, node, stored):
            continue
        source = made.get(relu.input[0])
        between = (relu.input[0], relu.output[0])
        alone = all(len(readers[n]) == 1 and n not in kept_names for n in between)
        if source is None or source.op_type not in _FUSING or not alone:
            continue
        gone.add(relu.output[0])
        result = node.output[0]
        node.input[0], node.output[0] = relu.input[0], f"{result}_linear"
        clip = helper.make_node("Clip", [node.output[0], node.input[2]], [result])
        clip.name = f"{result}_relu"
        nodes.append(clip)
    replace_nodes(graph, [n for n in nodes if not (n.output and n.output[0] in gone)])


def _is_relu(
    node: onnx.NodeProto, quantize: onnx.NodeProto, stored: dict[str, onnx.TensorProto]
) -> bool:
    """Return whether a node cuts at zero only, as far as the bytes behind it can tell."""
    if node.op_type != "Clip" or len(node.input) < 3:
        return node.op_type == "Relu"
    bounds = [stored.get(name) for name in (*node.input[1:3], *quantize.input[1:3])]
    if any(tensor is None or to_array(tensor).size != 1 for tensor in bounds):
        return False
    low, high, scale, zero = (float(to_array(t).reshape(())) for t in bounds if t is not None)
    return low == 0 and (_LARGEST - zero) * scale <= high + scale / 2


def _has_middle_zero(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Return whether a Q has unsigned bytes and one zero point that is not the least byte."""
    zero = stored.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.data_type != TensorProto.UINT8:
        return False
    value = to_array(zero)
    return value.size == 1 and int(value.reshape(())) > 0


def _fold_weights(graph: onnx.GraphProto) -> None:
    """Store weights as float32 that only convolutions on float inputs read."""
    made, readers, stored = producers(graph), consumers(graph), initializers(graph)
    folded: list[onnx.TensorProto] = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        sources = [made.get(reader.input[0]) for reader in readers[node.output[0]]]
        if any(s is not None and s.op_type == "DequantizeLinear" for s in sources):
            continue
        whole, scale = (to_array(stored[name]) for name in node.input[:2])
        axis = attribute(node, "axis", 1)
        sides = [-1 if i == axis else 1 for i in range(whole.ndim)]
        values = whole.astype(np.float32) * (scale.reshape(sides) if scale.size > 1 else scale)
        folded.append(numpy_helper.from_array(values, node.output[0]))
    names = {tensor.name for tensor in folded}
    replace_nodes(graph, [n for n in graph.node if not (n.output and n.output[0] in names)])
    replace_initializers(graph, [*graph.initializer, *folded])
