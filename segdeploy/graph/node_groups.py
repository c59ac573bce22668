"""The group of a node, by structure alone: independent of names, weights and calibration."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from segdeploy.graph.proto import attribute, consumers, initializers, producers, to_array

CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}  # Operator -> axis of the output channels.
ACTIVATIONS = {"LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Softplus", "Gelu", "Mish", "Tanh"}
MOVES = {"Resize", "Upsample", "Pad"}
_POOLING = {"ReduceMean", "GlobalAveragePool", "ReduceMax", "GlobalMaxPool"}
_POINTWISE = {
    "Relu", "HardSwish", "HardSigmoid", "Sigmoid", "Clip", "Mul", "Add", "Div", "Sub",
}  # fmt: skip
_KEEPS_POOLED = {*_POINTWISE, "Conv", "Gemm", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}


class NodeGroups:
    """A graph, indexed, and the group of each node that int8 has a choice for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.made = producers(graph)
        self.readers = consumers(graph)
        self.stored = initializers(graph)
        self.inputs = {value.name for value in graph.input} - set(self.stored)
        self.outputs = {value.name for value in graph.output}
        self.pooled = _pooled_tensors(graph)
        self._last = self._last_convolutions()
        self._stem = self._stem_convolutions()
        self.by_node = {n.name: group for n in graph.node if (group := self._group(n)) is not None}

    def clipped(self, name: str) -> str:
        """Return the tensor behind a Relu or Clip that alone reads this one."""
        following = self.readers.get(name, [])
        is_alone = len(following) == 1 and name not in self.outputs
        return following[0].output[0] if is_alone and self.is_clip(following[0]) else name

    def is_clip(self, node: onnx.NodeProto) -> bool:
        """Return whether a node is a Relu, or a Clip between constants (Relu6, Hardtanh).

        The ends of the grid behind it are its own. Between two grids it would round twice, and
        OpenVINO 2026.4 computes wrong numbers there.
        """
        is_fixed = all(name in self.stored for name in node.input[1:] if name)
        return node.op_type == "Relu" or (node.op_type == "Clip" and is_fixed)

    def maps(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of a node that are computed."""
        return [name for name in node.input if name and name not in self.stored]

    def _group(self, node: onnx.NodeProto) -> str | None:
        if node.op_type in CONVOLUTIONS:
            return self._convolution_group(node) if self._is_quantizable(node) else None
        computed = self.maps(node)
        pooled = [name in self.pooled for name in computed]
        is_channels = attribute(node, "axis") in (1, -3) and len(computed) == len(node.input)
        is_map = bool(pooled) and not pooled[0]
        behind = self.clipped(node.output[0]) if len(node.output) == 1 else ""
        possible = {
            "Add": (
                "residual" if behind == node.output[0] else "residual_relu",
                pooled == [False] * 2,
            ),
            "Mul": ("gate", sorted(pooled) == [False, True]),
            "Concat": ("concat", is_channels),
            "MaxPool": ("max_pool", is_map and len(node.output) == 1),
            "HardSwish": ("hard_swish", is_map),
            **dict.fromkeys(MOVES, ("resize", bool(computed))),
            **dict.fromkeys(ACTIVATIONS, ("activation", is_map)),
        }
        group, fits = possible.get(node.op_type, ("", False))
        return group if fits else None

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        """Return whether it has a stored weight whose output channels lie on one axis."""
        is_plain = node.op_type == "Conv" or attribute(node, "group", 1) == 1
        return node.input[1] in self.stored and is_plain

    def _convolution_group(self, node: onnx.NodeProto) -> str:
        weight = self.stored[node.input[1]].dims
        is_depthwise = self._is_depthwise(node)
        is_pointwise = all(side == 1 for side in weight[2:])
        found = {
            "classifier": node.name in self._last,
            "pooled": node.input[0] in self.pooled,
            "first_convolution": node.input[0] in self.inputs,
            "transposed": node.op_type == "ConvTranspose",
            "stem_depthwise": is_depthwise and self._follows_first(node.input[0]),
            "stem_residual": node.name in self._stem and self._joins_first(node.output[0]),
            "stem": node.name in self._stem,
            "depthwise": is_depthwise,
            "pointwise": is_pointwise,
        }
        return next((group for group, fits in found.items() if fits), "convolution")

    def _follows_first(self, name: str) -> bool:
        """Return whether a map is made of nothing but what a first convolution gives.

        Its activation may be of several nodes: SiLU is Sigmoid and Mul.
        """
        sources: set[str] = set()
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            if (name := waiting.pop()) in seen:
                continue
            seen.add(name)
            node = self.made.get(name)
            if node is not None and self._is_pointwise(node):
                waiting += self.maps(node)
            else:
                sources.add(name)
        makers = [self.made.get(source) for source in sources]
        return len(makers) == 1 and makers[0] is not None and self._is_first(makers[0])

    def _joins_first(self, name: str) -> bool:
        """Return whether a map is read by one sum alone, with what a first convolution gives."""
        following = self.readers.get(name, [])
        if len(following) != 1 or name in self.outputs or following[0].op_type != "Add":
            return False
        others = [each for each in self.maps(following[0]) if each != name]
        return len(others) == 1 and self._follows_first(others[0])

    def _is_first(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and node.input[0] in self.inputs

    def _is_pointwise(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _POINTWISE | ACTIVATIONS

    def _is_depthwise(self, node: onnx.NodeProto) -> bool:
        """Return whether each channel of a convolution's input is a group of its own."""
        weight = self.stored.get(node.input[1]) if node.op_type == "Conv" else None
        return weight is not None and weight.dims[1] == 1 and attribute(node, "group", 1) > 1

    def _stem_convolutions(self) -> set[str]:
        """Names of convolutions that read maps of the first one's resolution, or narrow the next.

        The next are what strided depthwise ones make of them: as wide and as uneven from channel to
        channel, until a pointwise one narrows them. None in a net whose first convolution is not
        followed by a depthwise one: there they are full convolutions, and much of all work.
        """
        found: set[str] = set()
        level: set[str] = set()
        below: set[str] = set()
        for node in self.graph.node:
            maps = [name for name in self.maps(node) if name not in self.pooled]
            is_convolution = node.op_type == "Conv"
            passes_on = self._is_pointwise(node)
            if self._is_first(node):
                level.update(node.output)
            elif maps and level.issuperset(maps):
                found.update([node.name] if is_convolution else [])
                keeps = is_convolution and set(attribute(node, "strides", [1])) == {1}
                if keeps or passes_on:
                    level.update(node.output)
                elif self._is_depthwise(node):
                    below.update(node.output)
            elif maps and below.issuperset(maps):
                found.update([node.name] if is_convolution else [])
                below.update(node.output if passes_on else [])
        is_narrow = any(
            self._is_depthwise(node) and self._follows_first(node.input[0])
            for node in self.graph.node
        )
        return found if is_narrow else set()

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
            if node.op_type in CONVOLUTIONS:
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
        is_pooling = node.op_type in _POOLING and reduced_axes(node, stored) >= {2, 3}
        carries = node.op_type in _KEEPS_POOLED and inputs and all(n in pooled for n in inputs)
        if is_pooling or carries:
            pooled.update(node.output)
    return pooled


def reduced_axes(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> set[int]:
    """Return the axes (of N, C, H, W) that a pooling node reduces; none where they are computed."""
    if node.op_type.startswith("Global"):
        return {2, 3}
    axes: Iterable[int] = attribute(node, "axes", ())
    if len(node.input) > 1 and node.input[1] in stored:
        axes = to_array(stored[node.input[1]]).ravel().tolist()
    return {axis % 4 for axis in axes}
