"""Transposes that undo each other are removed.

A graph from a channels-last framework begins and ends with one; with the ones that the contract's
NCHW adds, two meet at either end. Reads and writes of a whole image, and converters that cannot
move channels, for nothing.
"""

from __future__ import annotations

import onnx
from onnx import helper

from segdeploy.graph.constant_folding import remove_unused
from segdeploy.graph.proto import attribute, copy_model, producers, replace_nodes


def merge_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which no Transpose reads another, and none is the identity."""
    changed = copy_model(model)
    graph = changed.graph
    made = producers(graph)
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        if node.op_type == "Transpose":
            _merge(node, made)
            if _is_identity(node):
                if node.output[0] not in outputs:
                    instead[node.output[0]] = node.input[0]
                    continue
                node.CopyFrom(_identity(node))
        kept.append(node)
    replace_nodes(graph, kept)
    remove_unused(graph)
    return changed


def _merge(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> None:
    """Let a Transpose read what the Transpose before it reads, in place."""
    before = made.get(node.input[0])
    first = None if before is None else attribute(before, "perm")
    second = attribute(node, "perm")
    if before is None or before.op_type != "Transpose" or not first or not second:
        return
    node.input[0] = before.input[0]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("perm", [first[axis] for axis in second]))


def _is_identity(node: onnx.NodeProto) -> bool:
    perm = attribute(node, "perm")
    return bool(perm) and list(perm) == list(range(len(perm)))


def _identity(node: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("Identity", list(node.input), list(node.output), name=node.name)
