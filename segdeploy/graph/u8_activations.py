"""Signed int8 activations as unsigned ones: the same numbers with a zero point of 128.

Graphs for TensorRT hold what it accepts: symmetric S8, zero point 0. On x86 ONNX Runtime leaves
many such convolutions in float, while U8 with zero point 128 takes its fast path (0.73x the time
on LRASPP), and OpenVINO gets some of them wrong (`backends/openvino.py`). The shift by 128 is
exact: every quantised value keeps its meaning.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import consumers, copy_model, initializers, to_array

CONTRACT = PassContract("The U8 rewrite")
ZERO_POINT = 128
_ZERO_NAME = "u8_zero_point"


def use_u8_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with U8 activations of zero point 128 in place of symmetric S8 ones.

    Only Q nodes whose result is read by DequantizeLinear alone are touched.
    """
    changed = copy_model(model)
    graph = changed.graph
    stored, readers = initializers(graph), consumers(graph)
    rewritten: set[str] = set()
    for node in graph.node:
        following = readers.get(node.output[0], []) if node.output else []
        only_dq = following and all(n.op_type == "DequantizeLinear" for n in following)
        if _is_symmetric_s8(node, stored) and only_dq:
            for each in (node, *following):
                del each.input[2:]
                each.input.append(_ZERO_NAME)
            rewritten.add(node.output[0])
    if not rewritten:
        return changed
    graph.initializer.append(numpy_helper.from_array(np.asarray(ZERO_POINT, np.uint8), _ZERO_NAME))
    _drop_types(graph, rewritten)
    return changed


def _is_symmetric_s8(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.input[2] not in stored:
        return False
    zero = stored[node.input[2]]
    scale = stored.get(node.input[1])
    scalar = scale is not None and to_array(scale).size == 1
    return scalar and zero.data_type == TensorProto.INT8 and not to_array(zero).any()


def _drop_types(graph: onnx.GraphProto, names: set[str]) -> None:
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
