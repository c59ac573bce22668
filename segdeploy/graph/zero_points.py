"""Zero points of activations as part of the bias of the convolution that reads them.

`sum w (q - z) s + b` is `sum w q s + (b - s z sum w)`: the same numbers, and the convolution reads
plain bytes. oneDNN subtracts a zero point again in every call, which costs its 1x1 convolutions on
AVX-512 a sixth of their time (LRASPP in OpenVINO at 520x520: 7.6 ms of convolutions become 6.4).
Exact where nothing is padded: what is padded stands for zero, which is the byte z, so a padded
convolution (every depthwise one) keeps its zero point.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    free_name,
    initializers,
    producers,
    replace_initializers,
    replace_nodes,
    stored_weight,
    tensor_names,
    to_array,
)

CONTRACT = PassContract("The folding of zero points")
_SUFFIX = "_bytes"


def fold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph whose unpadded convolutions read activations without a zero point.

    Touched are convolutions with a stored weight and bias (or none) that read a DequantizeLinear
    of one scale and one zero point; other readers of the same bytes keep theirs.
    """
    changed = copy_model(model)
    graph = changed.graph
    made, stored = producers(graph), initializers(graph)
    taken = set(tensor_names(graph))
    nodes: list[onnx.NodeProto] = []
    plain: dict[str, str] = {}  # Dequantised with its zero point -> without.
    for node in graph.node:
        dequantize = made.get(node.input[0]) if node.op_type == "Conv" else None
        if dequantize is not None and not _is_padded(node):
            shift = _shift(node, dequantize, made, stored)
            if shift is not None:
                name = dequantize.output[0]
                if name not in plain:
                    plain[name] = free_name(f"{name}{_SUFFIX}", taken)
                    nodes.append(_without_zero_point(dequantize, plain[name], stored, taken))
                _add_to_bias(node, shift, stored, taken)
                node.input[0] = plain[name]
        nodes.append(node)
    if not plain:
        return changed
    replace_nodes(graph, nodes)
    readers, outputs = consumers(graph), {value.name for value in graph.output}
    unread = {name for name in plain if name not in readers and name not in outputs}
    replace_nodes(graph, [n for n in graph.node if not unread & set(n.output)])
    replace_initializers(graph, stored.values())
    return changed


def _is_padded(node: onnx.NodeProto) -> bool:
    unpadded = {b"NOTSET", b"VALID"}
    return attribute(node, "auto_pad", b"NOTSET") not in unpadded or any(
        attribute(node, "pads", ())
    )


def _shift(
    node: onnx.NodeProto,
    dequantize: onnx.NodeProto,
    made: dict[str, onnx.NodeProto],
    stored: dict[str, onnx.TensorProto],
) -> NDArray[np.float64] | None:
    """Return s z sum(w) of each output channel; None where there is nothing to fold."""
    weight = stored_weight(node.input[1], made, stored)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if weight is None or (has_bias and node.input[2] not in stored):
        return None
    if dequantize.op_type != "DequantizeLinear" or len(dequantize.input) < 3:
        return None
    if any(name not in stored or to_array(stored[name]).size != 1 for name in dequantize.input[1:]):
        return None
    scale, zero = (float(to_array(stored[n]).reshape(())) for n in dequantize.input[1:])
    return scale * zero * weight.sum(axis=tuple(range(1, weight.ndim))) if zero else None


def _without_zero_point(
    dequantize: onnx.NodeProto, result: str, stored: dict[str, onnx.TensorProto], taken: set[str]
) -> onnx.NodeProto:
    """Return a DequantizeLinear of the same bytes that calls byte 0 zero."""
    zero = free_name(f"{result}_zero_point", taken)
    kind = to_array(stored[dequantize.input[2]])
    stored[zero] = numpy_helper.from_array(np.zeros_like(kind), zero)
    return helper.make_node(
        "DequantizeLinear", [*dequantize.input[:2], zero], [result], name=result
    )


def _add_to_bias(
    node: onnx.NodeProto,
    shift: NDArray[np.float64],
    stored: dict[str, onnx.TensorProto],
    taken: set[str],
) -> None:
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = to_array(stored[node.input[2]]).astype(np.float64) if has_bias else 0.0
    name = free_name(f"{node.name}_bias{_SUFFIX}", taken)
    stored[name] = numpy_helper.from_array((bias - shift).astype(np.float32), name)
    del node.input[2:]
    node.input.append(name)
