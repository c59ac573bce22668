"""What TensorRT asks of Q/DQ nodes: symmetric int8, positive scales, one type of arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level, type_name
from segdeploy.graph.proto import opset_version

_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_FP16_OPSET = 19
_SYMMETRIC = (
    "Quantise symmetrically: segdeploy export --target tensorrt-int8 does, and onnx-int8 with "
    "--int8-policy tensorrt."
)


def zero_points(facts: GraphFacts) -> Iterator[Finding]:
    """TensorRT has symmetric quantisation only."""
    for node in facts.graph.node:
        if node.op_type not in _PAIR or len(node.input) < 3:
            continue
        zero = facts.constant(node.input[2])
        if zero is not None and zero.astype(np.float32).any():
            yield facts.finding(
                "zero-point",
                f"Its zero point {node.input[2]} is not 0 but {_first(zero)}.",
                _SYMMETRIC,
                node,
            )


def scales(facts: GraphFacts) -> Iterator[Finding]:
    """Scales must be positive; with fp16 scales, ONNX needs opset 19."""
    for node in facts.graph.node:
        if node.op_type not in _PAIR or len(node.input) < 2:
            continue
        values = facts.constant(node.input[1])
        if values is not None and not (values.astype(np.float32) > 0).all():
            yield facts.finding(
                "scale",
                f"Its scale {node.input[1]} is not positive everywhere.",
                "Calibrate on images that reach this layer; a channel that is always 0 has scale "
                "1.",
                node,
            )
        is_half = facts.type_of(node.input[1]) == TensorProto.FLOAT16
        if is_half and opset_version(facts.model) < _FP16_OPSET:
            yield facts.finding(
                "scale-fp16",
                f"fp16 scales are ONNX from opset {_FP16_OPSET} on, and this is "
                f"{opset_version(facts.model)}: TensorRT takes it, others may not.",
                "Convert the graph to opset 19.",
                node,
                Level.WARNING,
            )


def quantized_types(facts: GraphFacts) -> Iterator[Finding]:
    """DequantizeLinear of int32 (a bias), and of uint8 that no QuantizeLinear made."""
    for node in facts.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        name = node.input[0]
        kind = facts.type_of(name)
        maker = facts.made.get(name)
        if kind == TensorProto.INT32:
            yield facts.finding(
                "int32-bias",
                "It dequantises int32, as ONNX Runtime's quantizer writes biases.",
                "Leave biases in float: quantize_static(..., extra_options={'QuantizeBias': "
                "False}); segdeploy's own int8 does.",
                node,
            )
        elif kind == TensorProto.UINT8 and (maker is None or maker.op_type != "QuantizeLinear"):
            yield facts.finding(
                "uint8-operator",
                f"It dequantises {type_name(kind)} that no QuantizeLinear made.",
                _SYMMETRIC,
                node,
            )


def uint8_ends(facts: GraphFacts) -> Iterator[Finding]:
    """uint8 that QuantizeLinear makes may not leave the graph."""
    for node in facts.graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] not in facts.outputs:
            continue
        if facts.type_of(node.output[0]) == TensorProto.UINT8:
            yield facts.finding(
                "uint8-operator",
                f"The output {node.output[0]} is quantised uint8.",
                "Give float32 logits, or labels by a Cast.",
                node,
            )


def _first(values: NDArray[Any]) -> float:
    found = values.astype(np.float32).ravel()
    return float(found[np.flatnonzero(found)[0]])


RULES = (zero_points, scales, quantized_types, uint8_ends)
