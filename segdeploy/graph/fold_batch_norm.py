"""Batch normalisation behind a convolution becomes part of its weights.

Exporters of the TensorFlow world leave it in; runtimes that fuse it by themselves round in their
own way, int8 ranges would be chosen for a tensor that no fused kernel makes, and TensorRT's Q/DQ
rules want the convolution alone. The product is formed in float64 and rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.graph.pass_contract import PassContract
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

CONTRACT = PassContract("BatchNorm folding")
_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}  # Operator -> axis of the output channels.


def fold_batch_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the batch normalisations that directly follow a convolution.

    One that stands elsewhere (behind a sum, a resize, a concatenation) stays.
    """
    changed = copy_model(model)
    graph = changed.graph
    made, readers, stored = producers(graph), consumers(graph), initializers(graph)
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        before = made.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        is_alone = before is not None and len(readers[before.output[0]]) == 1
        if before is None or not is_alone or before.output[0] in outputs:
            kept.append(node)
        elif _can_fold(before, node, stored):
            _fold(before, node, stored)
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        return changed
    replace_nodes(graph, kept)
    replace_initializers(graph, stored.values())
    del graph.value_info[:]
    return CONTRACT.check_after(model, changed)


def _can_fold(
    convolution: onnx.NodeProto, norm: onnx.NodeProto, stored: dict[str, onnx.TensorProto]
) -> bool:
    if convolution.op_type not in _CONVOLUTIONS or attribute(norm, "training_mode", 0):
        return False
    if convolution.op_type == "ConvTranspose" and attribute(convolution, "group", 1) != 1:
        return False
    needed = [*convolution.input[1:], *norm.input[1:]]
    return all(name in stored for name in needed if name) and len(norm.output) == 1


def _fold(
    convolution: onnx.NodeProto, norm: onnx.NodeProto, stored: dict[str, onnx.TensorProto]
) -> None:
    """Let the convolution give what the normalisation gave, in place."""
    gamma, beta, mean, variance = (_exact(stored[name]) for name in norm.input[1:5])
    weight = _exact(stored[convolution.input[1]])
    has_bias = len(convolution.input) > 2 and convolution.input[2]
    bias = _exact(stored[convolution.input[2]]) if has_bias else np.zeros_like(mean)
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    along = [1] * weight.ndim
    along[_CONVOLUTIONS[convolution.op_type]] = -1
    result = norm.output[0]
    names = f"{result}_folded_weight", f"{result}_folded_bias"
    values = weight * factor.reshape(along), (bias - mean) * factor + beta
    for name, value in zip(names, values, strict=True):
        stored[name] = numpy_helper.from_array(value.astype(np.float32), name)
    data = convolution.input[0]
    del convolution.input[:]
    convolution.input.extend([data, *names])
    convolution.output[0] = result


def _exact(tensor: onnx.TensorProto) -> NDArray[np.float64]:
    return to_array(tensor).astype(np.float64)
