"""Where values really change between float and bytes when a runtime runs a graph with Q/DQ.

Not every Q and DQ of a file is computed: a runtime makes one kernel of DQ -> operator -> Q where it
has that operator on bytes, whatever the policy says of it, and none where it has not, so that int8
nodes of that operator run in float. The tables say which; they were read off the graphs as the
runtimes optimise them: ONNX Runtime 1.31 on a CPU (`optimized_model_filepath`, with the exchanges
of `byte_kernels`), OpenVINO 2026.4 on a CPU (its runtime model). A test asks ONNX Runtime again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx

from segdeploy.graph.node_groups import ACTIVATIONS, CONVOLUTIONS, NodeGroups
from segdeploy.graph.proto import attribute

_POOLS = frozenset({"GlobalAveragePool", "AveragePool"})
_ON_BYTES = {
    "onnx": _POOLS | {"Add", "Mul", "Concat", "LeakyRelu", "Sigmoid", "HardSwish"},
    "openvino": _POOLS,
}
"""Runtime -> operators that are one byte kernel between DQ and Q, though no policy asks for it."""
_IN_FLOAT = {
    "onnx": {"ConvTranspose", "Pad", *ACTIVATIONS} - {"LeakyRelu"},
    "openvino": {"ConvTranspose"},
}
"""Runtime -> operators that it computes in float between DQ and Q as well."""


class Borders:
    """What one runtime does with the Q/DQ of a placement.

    Args:
        groups: The plain graph.
        activations: Tensor -> the readers of its quantised form; None is all of them.
        chosen: Node -> `int8` or `fused`, of those alone that the placement takes into int8.
        runtime: A backend's name. Of one without a table, or none, int8 nodes run on bytes and
            all others in float.
        grid: Of all activations.
    """

    def __init__(
        self,
        groups: NodeGroups,
        activations: Mapping[str, frozenset[str] | None],
        chosen: Mapping[str, str],
        runtime: str,
        grid: str,
    ) -> None:
        self.groups = groups
        self.activations = activations
        self.chosen = chosen
        self.runtime = runtime
        self.grid = grid
        self.inside = {n.name for n in groups.graph.node if self._runs_on_bytes(n)}
        self.inside |= self._gates_of_silu()

    def count(self) -> int:
        """Count the Q whose value comes from float and the DQ that a float node reads."""
        count = 0
        for name in self.activations:
            count += self._maker(name) not in self.inside
            count += any(
                self._reads(node, name) and node.name not in self.inside
                for node in self.groups.readers.get(name, [])
            )
        return count

    def count_float_operators(self) -> dict[str, int]:
        """Count operators in float that read a DQ or feed a Q: each keeps int8 regions apart.

        Convolutions that were left in float are not counted: they are work, not an obstacle.
        """
        found: Counter[str] = Counter()
        for node in self.groups.graph.node:
            is_wanted = node.name in self.chosen and node.op_type == "ConvTranspose"
            is_work = node.op_type in CONVOLUTIONS and not is_wanted
            if node.name in self.inside or is_work or self.groups.is_clip(node):
                continue
            reads = any(self._reads(node, name) for name in node.input)
            feeds = any(self.groups.clipped(name) in self.activations for name in node.output)
            if (reads or feeds) and node.op_type != "Shape":
                found[node.op_type] += 1
        return dict(sorted(found.items()))

    def _runs_on_bytes(self, node: onnx.NodeProto) -> bool:
        if node.name in self.chosen:
            return not self._falls_back(node)
        return self._is_one_kernel(node)

    def _falls_back(self, node: onnx.NodeProto) -> bool:
        """Return whether a node that the policy takes into int8 is computed in float."""
        if node.op_type in _IN_FLOAT.get(self.runtime, ()):
            return True
        if self.runtime != "onnx":
            return False
        if node.op_type in {"Resize", "Upsample"}:  # Only what copies is moved to bytes.
            return bool(attribute(node, "mode", b"nearest") != b"nearest")
        return self.chosen[node.name] == "fused" or self._needs_quantized_result(node)

    def _needs_quantized_result(self, node: onnx.NodeProto) -> bool:
        """Return whether ONNX Runtime finds no Q behind a node, where its kernel ends.

        None is behind the classifier or an activation that is not its own node; behind a Relu it
        sees one where zero is the least byte, or `byte_kernels` moves it (convolutions).
        """
        result = self.groups.clipped(node.output[0])
        is_behind_relu = result != node.output[0] and node.op_type not in CONVOLUTIONS
        return result not in self.activations or (is_behind_relu and self.grid == "symmetric")

    def _is_one_kernel(self, node: onnx.NodeProto) -> bool:
        """Return whether a runtime makes one byte kernel of a node that no policy put into int8."""
        if node.op_type not in _ON_BYTES.get(self.runtime, ()) or len(node.output) != 1:
            return False
        read = [node.input[0]] if self._is_silu(node) else list(node.input)
        if not all(self._reads(node, name) for name in read):
            return False
        return self._is_only_quantized(node)

    def _is_only_quantized(self, node: onnx.NodeProto) -> bool:
        """Return whether nothing but one Q reads a node's result."""
        result = self.groups.clipped(node.output[0])
        if result != node.output[0] and self.grid == "symmetric":
            return False
        readers = self.groups.readers.get(result, [])
        is_quantized = result in self.activations and result not in self.groups.outputs
        return is_quantized and all(self._reads(reader, result) for reader in readers)

    def _is_silu(self, node: onnx.NodeProto) -> bool:
        """Return whether a node is x * sigmoid(x), which `integer_activations` puts on bytes."""
        return self.runtime == "onnx" and node.op_type == "Mul" and bool(self._gate(node))

    def _gate(self, node: onnx.NodeProto) -> str:
        """Return the name of the Sigmoid of a SiLU's Mul that nothing else reads, or ""."""
        for value, gate in (node.input, reversed(node.input)):
            made = self.groups.made.get(gate)
            if made is None or made.op_type != "Sigmoid" or made.input[0] != value:
                continue
            if len(self.groups.readers[gate]) == 1 and gate not in self.groups.outputs:
                return str(made.name)
        return ""

    def _gates_of_silu(self) -> set[str]:
        nodes = [n for n in self.groups.graph.node if n.name in self.inside and self._is_silu(n)]
        return {self._gate(node) for node in nodes}

    def _reads(self, node: onnx.NodeProto, name: str) -> bool:
        """Return whether a node reads the quantised form of a tensor."""
        if name not in self.activations:
            return False
        readers = self.activations[name]
        return readers is None or node.name in readers

    def _maker(self, name: str) -> str | None:
        """Return the node that makes a tensor, looking through what is fused into it."""
        node = self.groups.made.get(name)
        while node is not None and (
            self.groups.is_clip(node) or self.chosen.get(node.name) == "fused"
        ):
            before = self.groups.made.get(node.input[0])
            if before is None or len(self.groups.readers[node.input[0]]) > 1:
                break
            node = before
        return None if node is None else node.name
