"""What does not depend on the image is computed once, here.

Exporters leave sizes as chains of Shape, Gather and Concat in front of a Resize, and weights behind
Constant, Identity and Cast; converters of other formats stumble over the first, and every pass
looks for weights among the initializers. Only operators that move or count values are evaluated
(by ONNX's reference implementation), nothing whose rounding a runtime could see differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import (
    copy_model,
    initializers,
    opset_version,
    replace_initializers,
    replace_nodes,
    to_array,
)

CONTRACT = PassContract("Constant folding")
MAX_ELEMENTS = 2**24
"""A folded value is stored: a larger one (64 MiB) would cost more than it saves."""

_FOLDED = {
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
    "Expand", "Flatten", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod",
    "Mul", "Neg", "Not", "Or", "Range", "ReduceProd", "Reshape", "Slice", "Split", "Squeeze",
    "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_MAX_ROUNDS = 64  # Each round may make shapes known that the next one folds.

Values = dict[str, NDArray[Any]]


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with constant parts as stored tensors, and without Identity nodes."""
    changed = copy_model(model)
    for _ in range(_MAX_ROUNDS):
        if not _fold_once(changed):
            break
    _skip_identities(changed.graph)
    remove_unused(changed.graph)
    return CONTRACT.check_after(model, changed)


def _fold_once(model: onnx.ModelProto) -> bool:
    """Fold what can be folded with the shapes known now, in place; return whether any was."""
    graph = model.graph
    shapes = _static_shapes(model)
    stored = initializers(graph)
    small = {n: t for n, t in stored.items() if int(np.prod(t.dims, dtype=object)) <= MAX_ELEMENTS}
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    found: Values = {}
    opset = opset_version(model)
    for node in graph.node:
        values = None
        if not outputs & set(node.output):
            values = _evaluate(node, small, found, shapes, opset)
        if values is None:
            kept.append(node)
        else:
            found.update(values)
    if not found:
        return False
    tensors = [numpy_helper.from_array(value, name) for name, value in found.items()]
    replace_nodes(graph, kept)
    replace_initializers(graph, [*graph.initializer, *tensors])
    del graph.value_info[:]
    return True


def _evaluate(
    node: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    found: Values,
    shapes: dict[str, tuple[int, ...]],
    opset: int,
) -> Values | None:
    """Return the node's outputs by name, or None if they are not constant."""
    if node.op_type in {"Shape", "Size"} and node.input[0] in shapes:
        shape = np.asarray(shapes[node.input[0]], np.int64)
        if node.op_type == "Size":
            return {node.output[0]: np.asarray(np.prod(shape), np.int64)}
        known = {a.name: a.i for a in node.attribute}
        return {node.output[0]: shape[known.get("start", 0) : known.get("end", len(shape))]}
    names = [name for name in node.input if name]
    if node.op_type not in _FOLDED or any(n not in found and n not in stored for n in names):
        return None
    feeds = {n: found[n] if n in found else to_array(stored[n]) for n in names}
    try:
        results = ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    except Exception:  # noqa: BLE001  what the reference cannot do stays for the runtime
        return None
    arrays = [np.asarray(result) for result in results]
    if any(array.size > MAX_ELEMENTS or array.dtype == object for array in arrays):
        return None
    return {n: a for n, a in zip(node.output, arrays, strict=True) if n}


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info]:
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _skip_identities(graph: onnx.GraphProto) -> None:
    """Let readers of an Identity (or a Dropout, which does nothing here) read its input."""
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        is_idle = node.op_type == "Identity" or (node.op_type == "Dropout" and len(node.input) < 3)
        if is_idle and node.output[0] not in outputs:
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    replace_nodes(graph, kept)


def remove_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes that no output depends on, and stored tensors that no node reads, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
    replace_nodes(graph, kept[::-1])
    replace_initializers(graph, graph.initializer)
