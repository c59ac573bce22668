"""Rules that hold for every runtime: a graph that is no valid ONNX, or not whole."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from segdeploy.graph.lint.facts import Finding, GraphFacts, Level, external_file, is_finite
from segdeploy.graph.proto import opset_version

_OLDEST_OPSET = 9


def invalid_graph(facts: GraphFacts) -> Iterator[Finding]:
    """Types or shapes that contradict the operators' definitions."""
    if facts.problem:
        yield facts.finding(
            "invalid-graph",
            f"ONNX's own inference refuses it: {facts.problem[-300:]}",
            "Export it again; if you edited it, run onnx.checker after every edit.",
        )


def malformed_nodes(facts: GraphFacts) -> Iterator[Finding]:
    """Nodes with fewer inputs or outputs than their operator has; other rules rely on them."""
    version = opset_version(facts.model)
    for node in facts.nodes():
        if node.domain not in {"", "ai.onnx"} or not onnx.defs.has(node.op_type, version):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        if len(node.input) < schema.min_input or len(node.output) < schema.min_output:
            yield facts.finding(
                "invalid-graph",
                f"{node.op_type} needs {schema.min_input} inputs and {schema.min_output} outputs; "
                f"it has {len(node.input)} and {len(node.output)}.",
                "Export it again; if you edited it, run onnx.checker after every edit.",
                node,
            )


def external_data(facts: GraphFacts) -> Iterator[Finding]:
    """Weights in another file that is not there."""
    for stored, tensor in facts.stored.items():
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name = external_file(tensor)
        if facts.folder is None or not name or not (facts.folder / name).is_file():
            yield facts.finding(
                "external-data-missing",
                f"The values of {stored} are in {name or 'another file'}, which is missing.",
                "Keep the .onnx file beside its data file, or save it with the weights inside "
                "(below 2 GB).",
            )


def finite_weights(facts: GraphFacts) -> Iterator[Finding]:
    """NaN or infinity in a weight: every runtime takes it, and every prediction is wrong.

    It reads every stored tensor of the graph, so one that is cut short is noticed here.
    """
    for name in facts.stored:
        values = facts.weight(name)
        if values is not None and not is_finite(values):
            yield facts.finding(
                "weight-not-finite",
                f"{name} holds NaN or infinity.",
                "Train on, or export an earlier checkpoint.",
                level=Level.WARNING,
            )


def opset(facts: GraphFacts) -> Iterator[Finding]:
    """Operator sets older or newer than what the runtimes are made for."""
    found = opset_version(facts.model)
    if found and found < _OLDEST_OPSET:
        yield facts.finding(
            "opset-old",
            f"The graph is of opset {found}; runtimes are made for {_OLDEST_OPSET} and newer.",
            "Export it through segdeploy, which converts it: segdeploy export MODEL.onnx.",
            level=Level.WARNING,
        )
    if found > onnx.defs.onnx_opset_version():
        yield facts.finding(
            "opset-new",
            f"The graph is of opset {found}, newer than this onnx {onnx.__version__} knows.",
            "Export with opset 18, or update onnx.",
            level=Level.WARNING,
        )


RULES = (invalid_graph, external_data, finite_weights, opset)
