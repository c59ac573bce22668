"""What OpenVINO's ONNX reader and CPU plug-in refuse, as measured (docs/lint.md)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level, type_name
from segdeploy.graph.lint.microsoft_tables import DOMAIN, OPENVINO
from segdeploy.graph.proto import attribute

# Operators of ONNX that the reader of OpenVINO 2026.4 has no conversion for.
_UNKNOWN = frozenset(
    {
        "BitCast", "CausalConvWithState", "ConcatFromSequence", "CumProd", "DeformConv",
        "Det", "ImageDecoder", "LinearAttention", "MaxUnpool", "MelWeightMatrix",
        "Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch",
        "SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit",
        "SwiGLU", "TensorScatter", "TfIdfVectorizer",
    }
)  # fmt: skip
_DOMAINS = {"", "ai.onnx", "com.microsoft", "org.openvinotoolkit", "org.openvinotoolkit.mediapipe"}
_REFUSED_TYPES = {
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ, TensorProto.INT2, TensorProto.UINT2,
    TensorProto.STRING,
}  # fmt: skip
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MAX_CONV_RANK = 5
_COORDINATES = {"tf_crop_and_resize", "half_pixel_symmetric"}


def operators(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that the reader has no conversion for."""
    for node in facts.nodes():
        is_plain = node.domain in {"", "ai.onnx"}
        is_known = node.domain in _DOMAINS
        if is_plain:
            is_known = onnx.defs.has(node.op_type) and node.op_type not in _UNKNOWN
        elif node.domain == DOMAIN:
            is_known = node.op_type in OPENVINO
        if not is_known:
            yield facts.finding(
                "operator-unknown",
                f"OpenVINO has no operator {node.op_type}"
                + (f" of {node.domain}." if node.domain else "."),
                "Write the layer with other operations, or leave it outside the graph.",
                node,
                # Sequences of a fixed length are unrolled, which is more than the lint can see.
                Level.WARNING if "Sequence" in node.op_type else Level.ERROR,
            )


def modes(facts: GraphFacts) -> Iterator[Finding]:
    """Modes of Resize, Pad, Dropout and GridSample that it has not."""
    for node in facts.nodes():
        found = _text(node, "coordinate_transformation_mode")
        if node.op_type == "Resize" and found in _COORDINATES:
            yield facts.finding(
                "resize-coordinates",
                f"OpenVINO has no Resize with {found} coordinates.",
                "Use interpolate with align_corners False (half_pixel) or True (align_corners).",
                node,
            )
        if node.op_type == "Pad" and _text(node, "mode") == "wrap":
            yield facts.finding(
                "pad-mode", "OpenVINO does not wrap.", "Pad by constant, reflect or edge.", node
            )
        mode = facts.constant(node.input[2]) if len(node.input) > 2 else None
        is_training = len(node.input) > 2 and (mode is None or bool(mode.any()))
        if node.op_type == "Dropout" and is_training:
            yield facts.finding(
                "attribute", "It is in training mode.", "Export the model in eval mode.", node
            )
        is_float = facts.type_of(node.input[0]) in _FLOATS if node.input else False
        if node.op_type == "Mod" and is_float and not attribute(node, "fmod", 0):
            yield facts.finding(
                "operator-type", "Mod of floats needs fmod=1.", "Use torch.fmod.", node
            )
        rank = len(facts.shape_of(node.input[0]) or ()) if node.input else 0
        if node.op_type in {"Conv", "ConvTranspose"} and rank > _MAX_CONV_RANK:
            yield facts.finding(
                "rank",
                f"OpenVINO convolves in up to 3 dimensions, found {rank - 2}.",
                "Join dimensions that go together.",
                node,
            )
        if node.op_type == "GridSample" and rank == 5:
            yield facts.finding(
                "rank", "OpenVINO samples 4-dimensional tensors only.", "Sample slice by slice.",
                node,
            )  # fmt: skip


def data_types(facts: GraphFacts) -> Iterator[Finding]:
    """Element types that the reader has not."""
    for node in facts.nodes():
        if node.op_type not in {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"}:
            continue
        kinds = {facts.type_of(name) for name in (*node.input, *node.output) if name}
        for kind in sorted((kinds | {attribute(node, "to")}) & _REFUSED_TYPES):
            yield facts.finding(
                "data-type",
                f"OpenVINO has no {type_name(kind)}.",
                "Cast to float32 or int32.",
                node,
            )


def inputs(facts: GraphFacts) -> Iterator[Finding]:
    """An input without a rank."""
    for value in facts.inputs:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            yield facts.finding(
                "dynamic-rank",
                f"The input {value.name} has no rank; the CPU plug-in needs one.",
                "Export with an input of four dimensions.",
            )


def _text(node: onnx.NodeProto, name: str) -> str:
    found = attribute(node, name, b"")
    return found.decode() if isinstance(found, bytes) else str(found)


RULES = (operators, modes, data_types, inputs)
