"""What a graph pass needs and what it leaves as it was: checked on every graph, before and after.

A pass is a function from a model to a new one. Its file states a `CONTRACT`, asks
`CONTRACT.check_before(model)` first and returns `CONTRACT.check_after(model, changed)`: the graph
is valid by ONNX's own full check, its two ends are what they were unless the pass is there to
change one, and nobody has moved it to another opset in passing. A pass that goes wrong is thereby
named where it happens, not by a converter three steps later. That results are equal, too, is shown
for every pass of `PASSES` by a contract test, on graphs of real models.

Two passes cannot ask in every run: `convert_opset` sees graphs whose ends are not typed yet, and
`use_u8_activations` runs whenever a session opens. The test asks for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import onnx

from segdeploy.core.errors import BuildError
from segdeploy.core.registry import Registry
from segdeploy.graph.proto import check_graph, opset_version, refuse_subgraphs


class Need(StrEnum):
    """What a graph must be before a pass."""

    FLAT = "no control flow and no local functions"
    FLOAT = "no Q/DQ nodes"
    NAMED = "a name of its own for every node"


@dataclass(frozen=True)
class PassContract:
    """The promise of one pass; `name` is what messages call it, e.g. "The fp16 cast".

    `opset` is the one that it may raise a graph to; None leaves it. Ends are compared by name, type
    and sizes. Nodes that all had names of their own still have, unless `names_nodes` is False.
    """

    name: str
    needs: frozenset[Need] = frozenset()
    opset: int | None = None
    changes_input: bool = False
    changes_output: bool = False
    names_nodes: bool = True

    def check_before(self, model: onnx.ModelProto) -> None:
        """Check what the pass needs.

        Raises:
            BuildError: If the graph is not that.
        """
        if Need.FLAT in self.needs:
            refuse_subgraphs(model, self.name)
        quantizers = {"QuantizeLinear", "DequantizeLinear"}
        if Need.FLOAT in self.needs and any(n.op_type in quantizers for n in model.graph.node):
            raise BuildError(f"{self.name} needs {Need.FLOAT}: the graph is quantised already.")
        if Need.NAMED in self.needs and not _is_named(model):
            raise BuildError(f"{self.name} needs {Need.NAMED}.")

    def check_after(self, model: onnx.ModelProto, changed: onnx.ModelProto) -> onnx.ModelProto:
        """Return the changed graph if it keeps what the pass promises.

        Raises:
            BuildError: If it does not: a bug of the pass, or a graph that nobody has thought of.
        """
        check_graph(changed, self.name)
        before, after = opset_version(model), opset_version(changed)
        if after != before and (self.opset is None or not before < after <= self.opset):
            raise BuildError(f"{self.name} moved the graph from opset {before} to {after}.")
        if foreign := {o.domain for o in changed.opset_import} - {
            o.domain for o in model.opset_import
        }:
            raise BuildError(f"{self.name} brought operators of {', '.join(sorted(foreign))}.")
        for what, may_change, old, new in (
            ("inputs", self.changes_input, _inputs(model), _inputs(changed)),
            ("outputs", self.changes_output, model.graph.output, changed.graph.output),
        ):
            found, wanted = _describe(new), _describe(old)
            if not may_change and found != wanted:
                raise BuildError(f"{self.name} changed the {what} from {wanted} to {found}.")
        if self.names_nodes and _is_named(model) and not _is_named(changed):
            raise BuildError(f"{self.name} gave nodes that have no name of their own.")
        return changed


def _is_named(model: onnx.ModelProto) -> bool:
    names = Counter(node.name for node in model.graph.node)
    return not names[""] and all(count == 1 for count in names.values())


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _describe(values: Iterable[onnx.ValueInfoProto]) -> str:
    """Return names, types and sizes of ends, e.g. `logits FLOAT [N, 11, H, W]`."""
    return ", ".join(
        f"{value.name} {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)} "
        f"[{', '.join(_side(dim) for dim in value.type.tensor_type.shape.dim)}]"
        for value in values
    )


def _side(dim: onnx.TensorShapeProto.Dimension) -> str:
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


PASSES: Registry[PassContract] = Registry(
    "graph pass",
    {
        "constant_folding": "segdeploy.graph.constant_folding:CONTRACT",
        "batch_norm_folding": "segdeploy.graph.fold_batch_norm:CONTRACT",
        "fp16_cast": "segdeploy.graph.fp16:CONTRACT",
        "equalization": "segdeploy.graph.equalization:CONTRACT",
        "qdq_insertion": "segdeploy.graph.qdq:CONTRACT",
        "bias_correction": "segdeploy.graph.bias_correction:CONTRACT",
        "global_pooling": "segdeploy.graph.global_pool:CONTRACT",
        "narrowing_before_resize": "segdeploy.graph.narrow_resize:CONTRACT",
        "normalization_folding": "segdeploy.graph.fold_normalization:CONTRACT",
        "image_input": "segdeploy.graph.image_input:CONTRACT",
        "low_logits": "segdeploy.graph.low_logits:CONTRACT",
        "label_output": "segdeploy.graph.label_output:CONTRACT",
        "metadata": "segdeploy.graph.metadata:CONTRACT",
        "image_bytes": "segdeploy.graph.image_bytes:CONTRACT",
        "image_rows": "segdeploy.graph.image_rows:CONTRACT",
        "u8_activations": "segdeploy.graph.u8_activations:CONTRACT",
        "zero_points": "segdeploy.graph.zero_points:CONTRACT",
        "pooling_in_steps": "segdeploy.graph.pool_in_steps:CONTRACT",
        "opset_conversion": "segdeploy.graph.opset:CONTRACT",
    },
)
