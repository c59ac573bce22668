"""Static rules: would a runtime take this ONNX graph, and if not, which node is in the way?

    from segdeploy.graph.lint import lint_graph
    findings = lint_graph(load_graph(Path("model.onnx")), "tensorrt")

It needs no runtime: the rules are what the real parsers were seen to refuse (docs/lint.md shows
how often both agree). One file holds one runtime's rules; a rule is a function from `GraphFacts`
to findings. LiteRT and Core ML are converted from the checkpoint, never from ONNX: their rules
judge the graph as a description of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx

from segdeploy.core.registry import Registry
from segdeploy.graph.lint import common
from segdeploy.graph.lint.facts import Finding, GraphFacts, Level

Rule = Callable[[GraphFacts], Iterator[Finding]]

RULES: Registry[Sequence[Rule]] = Registry(
    "runtime to lint for",
    {
        "tensorrt": "segdeploy.graph.lint.tensorrt:RULES",
        "openvino": "segdeploy.graph.lint.openvino:RULES",
        "onnxruntime": "segdeploy.graph.lint.onnxruntime:RULES",
        "litert": "segdeploy.graph.lint.mobile:LITERT_RULES",
        "coreml": "segdeploy.graph.lint.mobile:COREML_RULES",
    },
)


def lint_graph(
    model: onnx.ModelProto,
    runtime: str,
    *,
    has_sizes: bool = False,
    folder: Path | None = None,
) -> list[Finding]:
    """Return what `runtime` refuses in a graph, errors first, in the graph's order.

    Args:
        model: The graph.
        runtime: A name of `RULES`.
        has_sizes: Whether sizes of dynamic inputs are given elsewhere (a profile).
        folder: Where the file lies, for weights in another file beside it.

    Raises:
        UnknownNameError: If there are no rules for the runtime.
    """
    facts = GraphFacts(model, has_sizes=has_sizes, folder=folder)
    malformed = list(common.malformed_nodes(facts))
    if malformed:
        return malformed
    rules = (*common.RULES, *RULES.get(runtime))
    found = list(dict.fromkeys(finding for rule in rules for finding in rule(facts)))
    return sorted(found, key=lambda finding: finding.level is not Level.ERROR)


__all__ = ["RULES", "Finding", "Level", "lint_graph"]
