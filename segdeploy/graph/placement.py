"""Where the int8 policy puts Q/DQ, read from the structure of a fp32 graph.

Convolutions take nearly all the time, so their inputs, weights and outputs are quantised, and what
would break a chain of them (residual Add, MaxPool, Concat). Kept in float, each for its reason:

* the last classifier convolutions: their output is the decision, and they are small;
* convolutions on pooled vectors (squeeze-excite, image pooling): no time to gain, and a gate that
  is wrong by 1 % scales a whole channel. Their weights alone are int8: they are up to half of the
  file (MobileNetV3), and rounding them per channel costs next to nothing;
* HardSwish, HardSigmoid, Mul, Resize, ReduceMean: read float values, give float values.

The output of a convolution is quantised before its activation only where the activation cannot be
fused (HardSwish); after a Relu otherwise. What is quantised and what is not is independent of
weights and calibration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from segdeploy.core.errors import BuildError
from segdeploy.graph.proto import attribute, consumers, initializers, producers, to_array

_CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}  # Operator -> axis of the output channels.
_POOLING = {"ReduceMean", "GlobalAveragePool", "ReduceMax", "GlobalMaxPool"}
_POINTWISE = {
    "Relu", "HardSwish", "HardSigmoid", "Sigmoid", "Clip", "Conv", "Mul", "Add", "Div", "Sub",
    "Gemm", "Flatten", "Reshape", "Squeeze", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """A weight to quantise per channel along `axis`."""

    name: str
    axis: int


@dataclass(frozen=True)
class Placement:
    """Which tensors get Q/DQ.

    `activations` are quantised once, and `readers` (node names) of each read the quantised form;
    None stands for all readers. `source` gives for a tensor that only moves values (MaxPool) the
    tensor whose scale it shares.
    """

    activations: dict[str, frozenset[str] | None]
    weights: tuple[Weight, ...]
    source: dict[str, str]

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors whose range calibration has to find."""
        return tuple(name for name in self.activations if name not in self.source)


def place_qdq(model: onnx.ModelProto) -> Placement:
    """Return the placement for a plain fp32 graph.

    Raises:
        BuildError: If nodes have no unique names, or the graph has Q/DQ nodes already.
    """
    names = [node.name for node in model.graph.node]
    if len(set(names)) < len(names) or not all(names):
        raise BuildError("Q/DQ placement needs a graph whose nodes have unique names.")
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph.node):
        raise BuildError("The graph is quantised already.")
    return _Placer(model.graph).place()


class _Placer:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.made = producers(graph)
        self.readers = consumers(graph)
        self.stored = initializers(graph)
        self.outputs = {value.name for value in graph.output}
        self.pooled = _pooled_tensors(graph)
        self.last = self._last_convolutions()
        self.activations: dict[str, set[str] | None] = {}
        self.source: dict[str, str] = {}
        self.weights: list[Weight] = []

    def place(self) -> Placement:
        for node in self.graph.node:
            if not self._is_quantizable(node):
                continue
            self.weights.append(Weight(node.input[1], _CONVOLUTIONS[node.op_type]))
            if node.input[0] not in self.pooled:
                self._place_convolution(node)
        for node in self.graph.node:
            if node.op_type == "Add":
                self._place_add(node)
            elif node.op_type == "MaxPool":
                self._place_max_pool(node)
            elif node.op_type == "Concat":
                self._place_concat(node)
        frozen = {n: None if r is None else frozenset(r) for n, r in self.activations.items()}
        return Placement(frozen, tuple(dict.fromkeys(self.weights)), self.source)

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _CONVOLUTIONS or node.input[1] not in self.stored:
            return False
        if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
            return False  # Its channels lie on two axes; no model here has one.
        return node.name not in self.last

    def _place_convolution(self, node: onnx.NodeProto) -> None:
        self._read_quantized(node.input[0], node.name)
        result = node.output[0]
        following = self.readers.get(result, [])
        if len(following) == 1 and following[0].op_type == "Relu" and result not in self.outputs:
            result = following[0].output[0]
        if result not in self.outputs:
            self.activations[result] = None

    def _read_quantized(self, name: str, reader: str) -> None:
        known = self.activations.setdefault(name, set())
        if known is not None:
            known.add(reader)

    def _is_quantized(self, name: str) -> bool:
        return name in self.activations

    def _place_add(self, node: onnx.NodeProto) -> None:
        """A residual sum of two quantised maps, itself read by a convolution."""
        if not all(self._is_quantized(n) for n in [*node.input, *node.output]):
            return
        for name in node.input:
            self._read_quantized(name, node.name)
        self.activations[node.output[0]] = None

    def _place_max_pool(self, node: onnx.NodeProto) -> None:
        if self._is_quantized(node.input[0]) and self._is_quantized(node.output[0]):
            self._read_quantized(node.input[0], node.name)
            self.source[node.output[0]] = node.input[0]

    def _place_concat(self, node: onnx.NodeProto) -> None:
        result = node.output[0]
        if not self._is_quantized(result) or any(n in self.stored for n in node.input):
            return
        for name in node.input:
            self._read_quantized(name, node.name)

    def _last_convolutions(self) -> set[str]:
        """Names of convolutions after which no other convolution follows on the way out."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = list(self.outputs)
        while waiting:
            node = self.made.get(waiting.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type in _CONVOLUTIONS:
                found.add(node.name)
            else:
                waiting.extend(n for n in node.input if n and n not in self.stored)
        return found


def _pooled_tensors(graph: onnx.GraphProto) -> set[str]:
    """Return tensors of spatial size 1 x 1: what global pooling gives, until it is broadcast."""
    pooled: set[str] = set()
    stored = initializers(graph)
    for node in graph.node:
        inputs = [n for n in node.input if n and n not in stored]
        is_pooling = node.op_type in _POOLING and _reduces_both(node, stored)
        carries = node.op_type in _POINTWISE and inputs and all(n in pooled for n in inputs)
        if is_pooling or carries:
            pooled.update(node.output)
    return pooled


def _reduces_both(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type.startswith("Global"):
        return True
    axes: Iterable[int] = attribute(node, "axes", ())
    if len(node.input) > 1 and node.input[1] in stored:
        axes = to_array(stored[node.input[1]]).ravel().tolist()
    return {axis % 4 for axis in axes} >= {2, 3}
