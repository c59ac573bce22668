"""Where a policy puts Q/DQ in a fp32 graph, and for each node what became of it and why.

A policy says what is wanted of a group; structure decides what is possible: a sum, a gate or a
resize runs in int8 only between int8 neighbours, else it would cost borders and gain nothing. The
output of an int8 convolution is quantised behind its Relu or Clip, and before an activation that
cannot be fused, unless the policy calls that activation `fused`.

What is quantised and what is not is independent of weights and calibration.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx

from segdeploy.core.errors import BuildError, ConfigError
from segdeploy.graph.borders import Borders
from segdeploy.graph.node_groups import CONVOLUTIONS, NodeGroups
from segdeploy.graph.policy import DEFAULT, Policy, shipped_policy

_MEANING = {
    "int8": "quantised",
    "weights": "weights alone",
    "float": "left in float",
    "fused": "part of the convolution before it",
}


@dataclass(frozen=True)
class Weight:
    """A weight to quantise per channel along `axis`."""

    name: str
    axis: int


@dataclass(frozen=True)
class NodeChoice:
    """What became of one node; `choice` may be less than the policy asked for."""

    node: str
    operator: str
    group: str
    choice: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """Which tensors get Q/DQ.

    `activations` are quantised once, and `readers` (node names) of each read the quantised form;
    None stands for all readers. `source` gives for a tensor that only moves values (MaxPool,
    Resize) the tensor whose scale it shares. `borders` counts the Q and DQ that the runtime really
    computes, `float_activations` the operators between int8 nodes that it runs in float (module
    `borders`). `grid` is the one of all activations.
    """

    activations: dict[str, frozenset[str] | None]
    weights: tuple[Weight, ...]
    source: dict[str, str]
    nodes: tuple[NodeChoice, ...] = ()
    borders: int = 0
    float_activations: dict[str, int] | None = None
    grid: str = "symmetric"

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors whose range calibration has to find."""
        return tuple(name for name in self.activations if name not in self.source)

    def summary(self) -> dict[str, Any]:
        """Return the counts: {groups: {group: {choice: n}}, borders, float_activations}."""
        groups: dict[str, Counter[str]] = {}
        for each in self.nodes:
            groups.setdefault(each.group, Counter())[each.choice] += 1
        return {
            "groups": {group: dict(found) for group, found in sorted(groups.items())},
            "borders": self.borders,
            "float_activations": self.float_activations or {},
            "activations": self.grid,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and every node."""
        return {**self.summary(), "nodes": [asdict(each) for each in self.nodes]}


def place_qdq(model: onnx.ModelProto, policy: Policy | None = None) -> Placement:
    """Return the placement for a plain fp32 graph, by the default policy where none is given.

    Raises:
        BuildError: If nodes have no unique names, or the graph has Q/DQ nodes already.
        ConfigError: If an override of the policy does not fit its node.
    """
    names = [node.name for node in model.graph.node]
    if len(set(names)) < len(names) or not all(names):
        raise BuildError("Q/DQ placement needs a graph whose nodes have unique names.")
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.node):
        raise BuildError("The graph is quantised already.")
    policy = policy or shipped_policy(DEFAULT)
    groups = NodeGroups(model.graph)
    for each in policy.overrides:
        if not any(fnmatchcase(name, each.nodes) for name in groups.by_node):
            raise ConfigError(
                f"The policy '{policy.name}' has an override for '{each.nodes}', and no node that "
                "int8 has a choice for is called so.",
                hint="'segdeploy show ARTIFACT' prints the names of an int8 artifact's nodes.",
            )
    return _Placer(groups, policy).place()


class _Placer:
    def __init__(self, groups: NodeGroups, policy: Policy) -> None:
        self.groups = groups
        self.grid = policy.activations
        self.runtime = policy.runtime
        self.nodes = [n for n in groups.graph.node if n.name in self.groups.by_node]
        self.description = policy.description
        self.wanted = {n.name: policy.choose(n.name, self._group(n), n.op_type) for n in self.nodes}
        self.refused: dict[str, str] = {}
        self.activations: dict[str, set[str] | None] = {}
        self.source: dict[str, str] = {}
        self.weights: list[Weight] = []

    def place(self) -> Placement:
        """Place convolutions, what joins their results, then what hands results on, backwards."""
        for node in self.nodes:
            if node.op_type in CONVOLUTIONS:
                self._place_convolution(node)
        join = {
            "residual": self._place_sum,
            "residual_relu": self._place_sum,
            "max_pool": self._place_max_pool,
            "concat": self._place_concat,
        }
        hand_on = {
            "gate": self._place_gate,
            "resize": self._place_resize,
            "hard_swish": self._place_activation,
            "activation": self._place_activation,
        }
        for nodes, table in ((self.nodes, join), (self.nodes[::-1], hand_on)):
            for node in nodes:
                place = table.get(self._group(node))
                if place is not None and self.wanted[node.name][0] == "int8":
                    place(node)
        return self._finished()

    def _finished(self) -> Placement:
        source = {name: self._root(name) for name in self.source}
        frozen = {n: None if r is None else frozenset(r) for n, r in self.activations.items()}
        choices = tuple(self._record(node) for node in self.nodes)
        taken = {c.node: c.choice for c in choices if c.choice in {"int8", "fused"}}
        borders = Borders(self.groups, frozen, taken, self.runtime, self.grid)
        return Placement(
            frozen,
            tuple(dict.fromkeys(self.weights)),
            source,
            choices,
            borders.count(),
            borders.count_float_operators(),
            self.grid,
        )

    def _group(self, node: onnx.NodeProto) -> str:
        return self.groups.by_node[node.name]

    def _record(self, node: onnx.NodeProto) -> NodeChoice:
        choice, reason = self.wanted[node.name]
        if node.name in self.refused:
            choice, reason = "float", self.refused[node.name]
        if not reason:  # A policy of one thought, as `all`, says it of itself.
            reason = ": ".join(filter(None, (_MEANING[choice], self.description)))
        return NodeChoice(node.name, node.op_type, self._group(node), choice, reason)

    def _refuse(self, node: onnx.NodeProto, why: str) -> None:
        self.refused[node.name] = why

    def _root(self, name: str) -> str:
        while name in self.source:
            name = self.source[name]
        return name

    def _place_convolution(self, node: onnx.NodeProto) -> None:
        choice, _ = self.wanted[node.name]
        if choice == "float":
            return
        self.weights.append(Weight(node.input[1], CONVOLUTIONS[node.op_type]))
        if choice == "weights":
            return
        self._read_quantized(node.input[0], node.name)
        if self._group(node) != "classifier":
            result = self._settled(node.output[0])
            if result not in self.groups.outputs:
                self.activations[result] = None

    def _settled(self, name: str) -> str:
        """Return the tensor that a convolution gives with what is fused into it."""
        behind = self.groups.clipped(name)
        following = self.groups.readers.get(name, [])
        if behind == name and len(following) == 1 and name not in self.groups.outputs:
            (reader,) = following
            if self.wanted.get(reader.name, ("", ""))[0] == "fused":
                return str(reader.output[0])
        return behind

    def _read_quantized(self, name: str, reader: str) -> None:
        known = self.activations.setdefault(name, set())
        if known is not None:
            known.add(reader)

    def _is_quantized(self, name: str) -> bool:
        return name in self.activations

    def _place_gate(self, node: onnx.NodeProto) -> None:
        if not self._is_quantized(node.output[0]):
            return self._refuse(node, "its result is read in float")
        for name in node.input:
            self._read_quantized(name, node.name)
        self.activations[node.output[0]] = None
        return None

    def _place_sum(self, node: onnx.NodeProto) -> None:
        """A residual sum of two quantised maps, itself read by a convolution."""
        result = self.groups.clipped(node.output[0])
        if not self._is_quantized(result):
            return self._refuse(node, "its result is read in float")
        if not all(self._is_quantized(name) for name in node.input):
            return self._refuse(node, "one of its inputs is float")
        for name in node.input:
            self._read_quantized(name, node.name)
        self.activations[result] = None
        return None

    def _place_max_pool(self, node: onnx.NodeProto) -> None:
        if not self._is_quantized(node.input[0]):
            return self._refuse(node, "its input is float")
        if not self._is_quantized(node.output[0]):
            return self._refuse(node, "its result is read in float")
        self._read_quantized(node.input[0], node.name)
        self.source[node.output[0]] = node.input[0]
        return None

    def _place_concat(self, node: onnx.NodeProto) -> None:
        if not self._is_quantized(node.output[0]):
            return self._refuse(node, "its result is read in float")
        for name in node.input:
            self._read_quantized(name, node.name)
        return None

    def _place_resize(self, node: onnx.NodeProto) -> None:
        """Interpolation stays within the range of its input, so both share a scale."""
        result = node.output[0]
        if not self._is_quantized(result):
            return self._refuse(node, "its result is read in float")
        if not _keeps_range(node):
            return self._refuse(node, "its values may leave the range of its input")
        self._read_quantized(node.input[0], node.name)
        self.activations[result] = None
        self.source[result] = node.input[0]
        return None

    def _place_activation(self, node: onnx.NodeProto) -> None:
        if not self._is_quantized(node.output[0]):
            return self._refuse(node, "its result is read in float")
        self._read_quantized(node.input[0], node.name)
        self.activations[node.output[0]] = None
        return None


def _keeps_range(node: onnx.NodeProto) -> bool:
    """Return whether a Resize or Pad gives nothing outside the range of its input and zero."""
    modes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Pad":
        return modes.get("mode", b"constant") != b"constant" or len(node.input) < 3
    return modes.get("mode", b"nearest") in {b"nearest", b"linear", b"bilinear"}
