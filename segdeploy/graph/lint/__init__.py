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
from contextlib import contextmanager
from pathlib import Path

import onnx

from segdeploy.core.errors import ArtifactError
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
        ArtifactError: If the graph is damaged.
    """
    rules = (*common.RULES, *RULES.get(runtime))
    with _damage("the reading of its constants"):
        facts = GraphFacts(model, has_sizes=has_sizes, folder=folder)
    if malformed := list(common.malformed_nodes(facts)):
        return malformed
    found: list[Finding] = []
    for rule in rules:
        with _damage(f"the rule {rule.__name__}", is_told=bool(facts.problem)):
            found += rule(facts)
    return sorted(dict.fromkeys(found), key=lambda finding: finding.level is not Level.ERROR)


@contextmanager
def _damage(what: str, *, is_told: bool = False) -> Iterator[None]:
    """Turn what a graph that is no valid ONNX does to a rule into an error that names the rule.

    `is_told`: `invalid-graph` is among the findings, so what this rule would add does not matter.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, OSError) as error:
        if not is_told:
            raise ArtifactError(
                f"The graph is damaged: {what} ends in {type(error).__name__}: {str(error)[:500]}",
                hint="Copy or download it again, or export it again.",
            ) from error


__all__ = ["RULES", "Finding", "Level", "lint_graph"]
