"""What ONNX Runtime's CPU provider refuses, as measured (docs/lint.md)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level
from segdeploy.graph.lint.microsoft_tables import DOMAIN, ONNXRUNTIME
from segdeploy.graph.proto import opset_version

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_NEWEST_IR = 13
_NEWEST_OPSET = 26
_OLDEST_OPSET = 7
_NOT_BEFORE_7 = {
    "Add", "And", "AveragePool", "BatchNormalization", "Div", "Dropout", "Equal", "Gemm",
    "Greater", "Less", "Mul", "Or", "PRelu", "Pow", "Sub", "Xor",
}  # fmt: skip
_UNKNOWN = {"CausalConvWithState", "ImageDecoder", "LinearAttention"}
_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_FP16_OPSET = 19


def operators(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that no operator set of it has."""
    for node in facts.nodes():
        is_plain = node.domain in {"", "ai.onnx"}
        is_known = node.domain in _DOMAINS
        if is_plain:
            is_known = onnx.defs.has(node.op_type) and node.op_type not in _UNKNOWN
        elif node.domain == DOMAIN:
            is_known = node.op_type in ONNXRUNTIME
        if not is_known and not facts.calls_function(node):
            yield facts.finding(
                "operator-unknown",
                f"ONNX Runtime has no operator {node.op_type}"
                + (f" of {node.domain}." if node.domain else "."),
                "Write the layer with other operations, or register your own operator library.",
                node,
            )


def half_scales(facts: GraphFacts) -> Iterator[Finding]:
    """Q/DQ with fp16 scales before the operator set that has them."""
    for node in facts.graph.node:
        is_half = node.op_type in _PAIR and facts.type_of(node.input[1]) == TensorProto.FLOAT16
        if is_half and opset_version(facts.model) < _FP16_OPSET:
            yield facts.finding(
                "scale-fp16",
                f"fp16 scales are ONNX from opset {_FP16_OPSET} on.",
                "Convert the graph to opset 19.",
                node,
            )


def file_version(facts: GraphFacts) -> Iterator[Finding]:
    """A file format that is newer than the runtime."""
    if facts.model.ir_version > _NEWEST_IR:
        yield facts.finding(
            "ir-version",
            f"The file is of IR version {facts.model.ir_version}; ONNX Runtime 1.31 reads up to "
            f"{_NEWEST_IR}.",
            "Save it with an older onnx, or set model.ir_version = 10.",
            level=Level.ERROR,
        )


def newest_opset(facts: GraphFacts) -> Iterator[Finding]:
    """An operator set that the runtime does not know yet."""
    if opset_version(facts.model) > _NEWEST_OPSET:
        yield facts.finding(
            "opset-new",
            f"The graph is of opset {opset_version(facts.model)}; ONNX Runtime 1.31 knows up to "
            f"{_NEWEST_OPSET}.",
            "Export with opset 18.",
        )


def oldest_opset(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that changed with operator set 7; it has kernels for the later form only."""
    found = opset_version(facts.model)
    for node in facts.nodes() if found < _OLDEST_OPSET else ():
        if node.op_type in _NOT_BEFORE_7:
            yield facts.finding(
                "opset-broadcast",
                f"ONNX Runtime has no {node.op_type} of opset {found}.",
                "Convert the graph: segdeploy export MODEL.onnx does.",
                node,
            )


RULES = (newest_opset, oldest_opset, operators, half_scales, file_version)
