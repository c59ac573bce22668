"""Reading, writing and walking an ONNX graph: what every pass stands on.

A pass is a pure function: it copies the model it gets, so that a step can be repeated from its
parent. Writing is deterministic (sorted protobuf fields), so equal graphs are equal files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.core.errors import ArtifactError, BuildError


def load_graph(path: Path) -> onnx.ModelProto:
    """Return the model of an ONNX file.

    Raises:
        ArtifactError: If it cannot be read.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:
        raise ArtifactError(f"{path} is not an ONNX file: {error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX file: it holds no graph.")
    return model


def graph_bytes(model: onnx.ModelProto) -> bytes:
    """Return the content of the file: equal models give equal bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check_graph(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """Return the model after ONNX's own full check; `what` names the pass that made it.

    Raises:
        BuildError: If the graph is not valid.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"{what} gave an invalid ONNX graph.", log=str(error)[-2000:]) from error
    return model


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def opset_version(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, each node once."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                found[name].append(node)
    return dict(found)


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def to_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return a stored tensor's values."""
    array: NDArray[Any] = np.asarray(numpy_helper.to_array(tensor))
    return array


def stored_weight(
    name: str, made: dict[str, onnx.NodeProto], stored: dict[str, onnx.TensorProto]
) -> NDArray[np.float64] | None:
    """Return a weight that is stored, as it is or behind a DequantizeLinear; else None."""
    if name in stored:
        return to_array(stored[name]).astype(np.float64)
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear" or attribute(node, "block_size", 0):
        return None
    if any(each not in stored for each in node.input):
        return None
    values, *grid = (to_array(stored[each]).astype(np.float64) for each in node.input)
    axis = attribute(node, "axis", 1) % values.ndim
    sides = [-1 if i == axis else 1 for i in range(values.ndim)]
    scale, zero = (
        each.reshape(sides if each.size > 1 else ()) for each in (*grid, np.zeros(1))[:2]
    )
    return np.asarray((values - zero) * scale)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute value."""
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type (TensorProto.DataType) of every tensor, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def refuse_subgraphs(model: onnx.ModelProto, what: str) -> None:
    """Raise BuildError if the graph has control flow or local functions, which no pass walks."""
    if has_subgraphs(model):
        nested = _with_branches(model)
        named = ", ".join(sorted({*nested, *(f.name for f in model.functions)}))
        raise BuildError(
            f"{what} cannot handle a graph with control flow or local functions ({named})."
        )


def has_subgraphs(model: onnx.ModelProto) -> bool:
    """Return whether the graph has control flow or local functions."""
    return bool(_with_branches(model) or model.functions)


def _with_branches(model: onnx.ModelProto) -> list[str]:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return [n.op_type for n in model.graph.node if any(a.type in kinds for a in n.attribute)]


def rename_input(node: onnx.NodeProto, old: str, new: str) -> None:
    """Let a node read `new` where it reads `old`, in place."""
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def replace_initializers(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Set the graph's stored tensors to those given that a node or an output uses, in place."""
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = []
    for tensor in {t.name: t for t in tensors if t.name in used}.values():
        copied = onnx.TensorProto()
        copied.CopyFrom(tensor)
        kept.append(copied)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Set the graph's nodes, in place; the order must already be topological."""
    kept = [copy_node(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of one node."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every tensor name in use."""
    for value in graph.input:
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
    for node in graph.node:
        yield from node.output


def free_name(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, by underscores at its end, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
