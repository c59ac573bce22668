"""What TensorRT's ONNX parser and builder refuse, as measured with NVIDIA's own (docs/lint.md).

Each rule is one that the parser was seen to apply; nothing is here by hearsay. Measured with the
parser of TensorRT-RTX 1.7 under the Python API of 11.4: other versions know other operators.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level, type_name
from segdeploy.graph.lint.tensorrt_quantization import RULES as QUANTIZATION_RULES
from segdeploy.graph.lint.tensorrt_sizes import RULES as SIZE_RULES
from segdeploy.graph.lint.tensorrt_tables import (
    BROADCASTING,
    NOT_FOR,
    OPERATORS,
    PLUGINS,
    QUANTIZED_ONLY,
    REFUSED_TYPES,
)
from segdeploy.graph.proto import attribute, opset_version

_COORDINATES = {
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn",
}  # fmt: skip
_MAX_CONV_RANK = 5
_BROADCAST_OPSET = 7
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def operators(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that the parser has no importer for; functions of the model it inlines."""
    for node in facts.nodes():
        if facts.calls_function(node):
            continue
        if node.op_type in PLUGINS:
            yield facts.finding(
                "operator-plugin",
                f"{node.op_type} is done by a plugin that TensorRT-RTX does not bring.",
                f"Compute {node.op_type} outside the graph, or on full TensorRT.",
                node,
            )
        elif node.op_type not in OPERATORS:
            yield facts.finding(
                "operator-unknown",
                f"TensorRT has no operator {node.op_type}"
                + (f" of {node.domain}." if node.domain else "."),
                "Write the layer with other operations, or leave it outside the graph. "
                + ("ONNX Runtime's own operators come from its optimiser: lint the original."
                   if node.domain == "com.microsoft" else ""),
                node,
            )  # fmt: skip


def data_types(facts: GraphFacts) -> Iterator[Finding]:
    """Element types that TensorRT has not."""
    for value in facts.inputs:
        kind = value.type.tensor_type.elem_type
        if kind in REFUSED_TYPES:
            yield facts.finding(
                "data-type",
                f"The input {value.name} is {type_name(kind)}, which TensorRT has not.",
                "Use float32, float16, int32, int64, int8, bool; or uint8 that only a Cast reads.",
            )
    for tensor in facts.graph.initializer:
        if tensor.data_type in REFUSED_TYPES and tensor.name in facts.readers:
            yield facts.finding(
                "data-type",
                f"{tensor.name} is stored as {type_name(tensor.data_type)}, which TensorRT has "
                "not.",
                "Store it as float32, int32 or int8.",
                facts.readers[tensor.name][0],
            )
    for node in facts.nodes():
        if node.op_type not in {"Cast", "CastLike"}:
            continue
        kind = attribute(node, "to") or facts.type_of(node.input[-1])
        source = facts.type_of(node.input[0])
        if kind in REFUSED_TYPES | QUANTIZED_ONLY or source in QUANTIZED_ONLY:
            yield facts.finding(
                "data-type",
                f"TensorRT does not cast {type_name(source)} to {type_name(kind)}.",
                "Label maps of 256 classes and more: use --output logits and decide outside."
                if kind == TensorProto.UINT16 else "Cast to float32 or int32.",
                node,
            )  # fmt: skip


def operator_types(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that TensorRT has, but not for every type that ONNX allows."""
    for node in facts.graph.node:
        kind = facts.type_of(node.input[0]) if node.input else 0
        if kind in NOT_FOR.get(node.op_type, ()):
            yield facts.finding(
                "operator-type",
                f"TensorRT has no {node.op_type} of {type_name(kind)}.",
                f"Cast to float32 before {node.op_type}, and back after it.",
                node,
            )


def old_broadcasting(facts: GraphFacts) -> Iterator[Finding]:
    """Arithmetic of operator sets before 7, which broadcast by an attribute."""
    found = opset_version(facts.model)
    for node in facts.nodes() if found < _BROADCAST_OPSET else ():
        if node.op_type in BROADCASTING:
            yield facts.finding(
                "opset-broadcast",
                f"{node.op_type} of opset {found} broadcasts otherwise than from "
                f"{_BROADCAST_OPSET} on, which is all that TensorRT knows.",
                "Convert the graph: segdeploy export MODEL.onnx does.",
                node,
            )


def forms(facts: GraphFacts) -> Iterator[Finding]:
    """Operators that TensorRT takes in some forms only, which depend on shapes and types."""
    for node in facts.graph.node:
        rank = len(facts.shape_of(node.input[0]) or ()) if node.input else 0
        if node.op_type in {"Conv", "ConvTranspose"} and rank > _MAX_CONV_RANK:
            yield facts.finding(
                "rank",
                f"TensorRT convolves in up to 3 dimensions, found {rank - 2}.",
                "Join dimensions that go together.",
                node,
            )
        is_float = facts.type_of(node.input[0]) in _FLOATS if node.input else False
        if node.op_type == "Mod" and is_float and not attribute(node, "fmod", 0):
            yield facts.finding(
                "operator-type", "Mod of floats needs fmod=1.", "Use torch.fmod.", node
            )
        if node.op_type == "Attention":
            yield facts.finding(
                "attention-form",
                "TensorRT takes Attention in few forms: no softcap, no cache, one output.",
                "Export with opset 18, where attention is MatMul and Softmax.",
                node,
                Level.WARNING,
            )


def uint8(facts: GraphFacts) -> Iterator[Finding]:
    """uint8 is a type of inputs and outputs only: a Cast has to stand right behind or before."""
    for node in facts.graph.node:
        if node.op_type in {"Cast", "QuantizeLinear", "DequantizeLinear", "Shape", "Size"}:
            continue
        kinds = {facts.type_of(name) for name in node.input if name}
        is_compared = node.op_type == "Equal" and not facts.stored.keys() & set(node.input)
        if TensorProto.UINT8 in kinds and not is_compared:
            yield facts.finding(
                "uint8-operator",
                f"{node.op_type} works on uint8; TensorRT reads uint8 inputs with a Cast only.",
                "Put the Cast to float32 first, then "
                f"{node.op_type}; segdeploy export --input image does that.",
                node,
            )
    for node in facts.graph.node:
        made = node.output[0] if node.output else ""
        is_uint8 = node.op_type == "Cast" and facts.type_of(made) == TensorProto.UINT8
        if is_uint8 and made not in facts.outputs:
            yield facts.finding(
                "uint8-intermediate",
                "It makes a uint8 tensor inside the graph; TensorRT has uint8 at its ends only.",
                "Cast to int32 inside the graph.",
                node,
            )


def resize(facts: GraphFacts) -> Iterator[Finding]:
    """Ways of resizing that TensorRT has not."""
    for node in facts.nodes():
        if node.op_type != "Resize":
            continue
        mode = _text(node, "coordinate_transformation_mode", "half_pixel")
        if mode not in _COORDINATES:
            yield facts.finding(
                "resize-coordinates",
                f"TensorRT has no Resize with {mode} coordinates.",
                "Use interpolate with align_corners False (half_pixel) or True (align_corners).",
                node,
            )
        if attribute(node, "antialias", 0):
            yield facts.finding(
                "resize-antialias",
                "TensorRT resizes without antialiasing only.",
                "Use interpolate(antialias=False) in the model; resize images outside the graph.",
                node,
            )
        if _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            yield facts.finding(
                "resize-aspect",
                "TensorRT knows only the policy 'stretch'.",
                "Give both sizes as they shall be.",
                node,
            )


def attributes(facts: GraphFacts) -> Iterator[Finding]:
    """Attributes that the parser refuses."""
    for node in facts.nodes():
        for message, cure in _refused_attributes(node):
            yield facts.finding("attribute", message, cure, node)


def _refused_attributes(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    kind = node.op_type
    num_outputs = sum(bool(name) for name in node.output)
    if kind == "BatchNormalization" and (attribute(node, "training_mode", 0) or num_outputs > 1):
        yield "It is in training mode.", "Export the model in eval mode."
    if kind in {"MaxPool", "AveragePool", "LpPool"}:
        if any(d != 1 for d in attribute(node, "dilations", [1])):
            yield "TensorRT pools without dilations only.", "Use pooling with dilation 1."
        if num_outputs > 1:
            yield (
                "It gives indices, which TensorRT does not.",
                "Unpooling needs them: use interpolate or a transposed convolution instead.",
            )
    if kind in {"LayerNormalization", "Attention"} and num_outputs > 1:
        yield f"TensorRT gives one output of {kind}, not {num_outputs}.", "Drop the others."
    if kind == "LpPool" and attribute(node, "p", 2) not in (1, 2):
        yield "TensorRT pools by the norms 1 and 2 only.", "Use another pooling."
    if kind in {"ScatterND", "ScatterElements"}:
        found = _text(node, "reduction", "none")
        if found != "none":
            yield (
                f"TensorRT scatters without a reduction only, found '{found}'.",
                "Add up before scattering.",
            )


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    found = attribute(node, name, default)
    return found.decode() if isinstance(found, bytes) else str(found)


RULES = (
    operators, data_types, operator_types, old_broadcasting, forms, uint8, resize, attributes,
    *SIZE_RULES, *QUANTIZATION_RULES,
)  # fmt: skip
