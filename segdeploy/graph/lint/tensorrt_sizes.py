"""What TensorRT asks of sizes and constants: known when the engine is built, and within bounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level
from segdeploy.graph.lint.tensorrt_tables import AXES, FIXED_SLOTS, NUMBER_SLOTS

_MAX_K = 3840
_MAX_RANK = 8
_INT32 = np.iinfo(np.int32)


def constants(facts: GraphFacts) -> Iterator[Finding]:
    """Constants that go beyond what TensorRT takes: k of TopK, modes, huge sizes, many axes."""
    for node in facts.graph.node:
        if node.op_type == "TopK" and len(node.input) > 1:
            k = facts.constant(node.input[1])
            if k is not None and k.size and int(k.flat[0]) > _MAX_K:
                yield facts.finding(
                    "topk-size",
                    f"k is {int(k.flat[0])}; TensorRT sorts up to {_MAX_K}.",
                    "Take fewer, or use ArgMax for the best.",
                    node,
                )
        if node.op_type == "Dropout" and len(node.input) > 2:
            mode = facts.constant(node.input[2])
            if mode is None or bool(mode.any()):
                yield facts.finding(
                    "attribute", "It is in training mode.", "Export the model in eval mode.", node
                )
        yield from _shape_findings(facts, node)


def _shape_findings(facts: GraphFacts, node: onnx.NodeProto) -> Iterator[Finding]:
    for name in node.output:
        shape = facts.shape_of(name)
        if shape is not None and len(shape) > _MAX_RANK:
            yield facts.finding(
                "rank",
                f"{name} has {len(shape)} dimensions; TensorRT has up to {_MAX_RANK}.",
                "Join dimensions that go together.",
                node,
            )
    slots = FIXED_SLOTS.get(node.op_type, ())
    for index in slots if node.op_type != "Slice" else ():
        values = facts.constant(node.input[index]) if index < len(node.input) else None
        if values is None or values.dtype.kind != "i" or not values.size:
            continue
        if int(values.max()) > _INT32.max or int(values.min()) < _INT32.min:
            yield facts.finding(
                "int64-range",
                f"{node.input[index]} holds {int(np.abs(values).max())}, beyond int32: no "
                "dimension can be that large.",
                "Export at a fixed size, or with bounds.",
                node,
            )


def sizes(facts: GraphFacts) -> Iterator[Finding]:
    """Sizes that are known only when the engine runs."""
    for value in facts.inputs:
        kind = value.type.tensor_type
        is_fixed = all(d.HasField("dim_value") for d in kind.shape.dim)
        if not is_fixed and not facts.has_sizes:
            yield facts.finding(
                "dynamic-without-profile",
                f"The input {value.name} has no fixed size, and no range of sizes is given.",
                "Give --size HxW, or --size LEAST..LARGEST, which becomes the engine's profile.",
            )
    for node in facts.graph.node:
        for index in NUMBER_SLOTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name in facts.from_values and name not in facts.stored:
                yield facts.finding(
                    "size-from-values",
                    f"{name} decides sizes, and depends on what the inputs hold.",
                    "Let sizes depend on constants or on shapes only.",
                    node,
                )


def computed_axes(facts: GraphFacts) -> Iterator[Finding]:
    """Axes of a reduction have to be constants."""
    for node in facts.graph.node:
        name = node.input[1] if node.op_type in AXES and len(node.input) > 1 else ""
        is_reduction = node.op_type.startswith("Reduce")
        if is_reduction and name and name not in facts.stored and name not in facts.from_values:
            yield facts.finding(
                "axes-computed",
                f"The axes {name} are computed in the graph.",
                "Fold constants: segdeploy export does; or onnxslim MODEL.onnx.",
                node,
            )


def large_integers(facts: GraphFacts) -> Iterator[Finding]:
    """Integers beyond int32: TensorRT before 10 clamps them to it."""
    for node in facts.graph.node:
        slots = FIXED_SLOTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            values = facts.constant(name)
            if index in slots or values is None or values.dtype.kind != "i" or not values.size:
                continue
            if int(values.max()) > _INT32.max or int(values.min()) < _INT32.min:
                yield facts.finding(
                    "int64-narrowed",
                    f"{name} holds values beyond int32; TensorRT before 10 clamps them.",
                    "Keep constants within int32.",
                    node,
                    Level.WARNING,
                )


RULES = (constants, sizes, computed_axes, large_integers)
