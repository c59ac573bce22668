"""LiteRT and Core ML: what the graph says about a model that is to go there.

Both are converted from the checkpoint (torch), not from ONNX: an operator here is no proof either
way, and no parser could be asked. So only ends and sizes are judged, by what their converters were
seen to refuse (LiteRT: uint16 ends) or say themselves (coremltools 9: "Core ML only supports
tensors with rank <= 5"; Apple's MLMultiArrayDataType lists int8, int32, float16, float32, double).
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level, type_name

_COREML_TYPES = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT8,
}  # fmt: skip
_COREML_RANK = 5


def fixed_size(facts: GraphFacts) -> Iterator[Finding]:
    """Payloads of LiteRT and Core ML are of one size; a range does not help."""
    for value in facts.inputs:
        kind = value.type.tensor_type
        sides = [d.HasField("dim_value") for d in kind.shape.dim][1:]
        if not all(sides):
            yield facts.finding(
                "dynamic-size",
                f"The input {value.name} has no fixed size; such a payload has one.",
                "Give --size HxW to the export.",
            )


def litert_types(facts: GraphFacts) -> Iterator[Finding]:
    """uint16 ends, which litert-torch refuses (KeyError: torch.uint16)."""
    for value in [*facts.inputs, *facts.graph.output]:
        kind = value.type.tensor_type.elem_type
        if kind in (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64):
            yield facts.finding(
                "data-type",
                f"{value.name} is {type_name(kind)}, which litert-torch cannot write.",
                "With 256 classes and more: --output logits, and decide outside.",
            )


def coreml_types(facts: GraphFacts) -> Iterator[Finding]:
    """Ends of a type that Core ML's multi-arrays have not."""
    for value in [*facts.inputs, *facts.graph.output]:
        kind = value.type.tensor_type.elem_type
        if kind not in _COREML_TYPES:
            yield facts.finding(
                "data-type",
                f"{value.name} is {type_name(kind)}, which Core ML's multi-arrays have not.",
                "The coreml target gives labels as int32 and takes images as float; an app that "
                "reads the payload itself has to know.",
                level=Level.WARNING,
            )


def coreml_rank(facts: GraphFacts) -> Iterator[Finding]:
    """Tensors of more dimensions than Core ML has."""
    for node in facts.graph.node:
        for name in node.output:
            shape = facts.shape_of(name)
            if shape is not None and len(shape) > _COREML_RANK:
                yield facts.finding(
                    "rank",
                    f"{name} has {len(shape)} dimensions; Core ML has up to {_COREML_RANK}.",
                    "Join dimensions that go together.",
                    node,
                )


LITERT_RULES = (fixed_size, litert_types)
COREML_RULES = (fixed_size, coreml_types, coreml_rank)
