"""Cross-layer equalisation: channels of one tensor get alike ranges, and the graph stays the same.

One int8 scale serves all channels of an activation, so a channel of small values is lost beside one
of large values; depthwise networks are full of such pairs. A positive factor per channel can be
taken out of the convolutions that make a tensor and put into those that read it (M. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019). Two things
differ from the paper: the factors come from the activations on calibration images, since weights
are quantised per channel here; and they are powers of two, so that the float graph computes the
very same bits as before. As in the paper half of the way is gone, in logarithms: what activations
gain beyond that, the weights that read them lose. No range becomes wider.

What carries such a factor through unchanged makes a *region*: Relu, pooling, resizing, a sum of two
tensors of the region, a product with a gate. A region counts only if convolutions alone make it and
read it, all of one number of channels: a sum may spread one channel over many. HardSwish, sigmoids,
Clip at 6, concatenations and the graph's own ends break it: there the result would not be exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from segdeploy.graph.calibrate import Batches, find_channel_peaks
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    initializers,
    producers,
    to_array,
)

CONTRACT = PassContract("Equalisation", frozenset({Need.FLAT, Need.FLOAT}))
LARGEST_EXPONENT = 4  # A channel that is zero on all images must not get a factor without bound.
_CARRIERS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
_MEANS = {"ReduceMean", "ReduceMax", "Resize"}  # Where they work on H and W alone.
_GATES = {"Sigmoid", "HardSigmoid"}

Exponents = dict[str, NDArray[np.int64]]


@dataclass
class Region:
    """Tensors that share one factor per channel, with the convolutions around them."""

    tensors: list[str] = field(default_factory=list)
    makers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def read(self) -> list[str]:
        """Tensors that convolutions read: those that int8 rounds."""
        return list(dict.fromkeys(node.input[0] for node in self.readers))


def find_regions(model: onnx.ModelProto) -> list[Region]:
    """Return the regions through which a positive factor per channel passes exactly."""
    return _Regions(model.graph).find()


def equalize(model: onnx.ModelProto, batches: Batches) -> onnx.ModelProto:
    """Return the plain fp32 graph with the channels of each region brought to alike ranges.

    It computes the same bits. What is quantised afterwards plays no part, so that every int8 policy
    starts from the same graph.

    Raises:
        BuildError: If the graph has control flow.
        DataError: If there is no batch, or an activation is not finite.
    """
    regions = find_regions(model)
    if not regions:
        return model
    read = dict.fromkeys(name for region in regions for name in region.read)
    return scale_regions(model, regions, find_channel_peaks(model, list(read), batches))


def scale_regions(
    model: onnx.ModelProto, regions: Iterable[Region], peaks: Mapping[str, NDArray[np.floating]]
) -> onnx.ModelProto:
    """Return the graph with each region scaled by the peaks (C,) of the tensors read there."""
    CONTRACT.check_before(model)
    changed = copy_model(model)
    stored = initializers(changed.graph)
    for region in regions:
        exponents = np.max([choose_exponents(peaks[name]) for name in region.read], axis=0)
        for node in region.makers:
            _scale_outputs(node, stored, -exponents)
        for node in region.readers:
            _scale_inputs(node, stored, exponents)
    return CONTRACT.check_after(model, changed)


def choose_exponents(peaks: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return e (C,), at most 0: what is read is multiplied by 2^e, what is made divided by it."""
    top = float(peaks.max(initial=0))
    if top <= 0:
        return np.zeros(peaks.shape, np.int64)
    share = np.sqrt(np.maximum(peaks / top, 4.0**-LARGEST_EXPONENT))
    exponents: NDArray[np.int64] = np.rint(np.log2(share)).astype(np.int64)
    return exponents


def _scale_outputs(
    node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], exponents: NDArray[np.int64]
) -> None:
    axis = 1 if node.op_type == "ConvTranspose" else 0
    _scale(stored[node.input[1]], exponents, axis)
    if len(node.input) > 2 and node.input[2]:
        _scale(stored[node.input[2]], exponents, 0)


def _scale_inputs(
    node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], exponents: NDArray[np.int64]
) -> None:
    is_first = node.op_type == "ConvTranspose" or attribute(node, "group", 1) > 1
    _scale(stored[node.input[1]], exponents, 0 if is_first else 1)


def _scale(tensor: onnx.TensorProto, exponents: NDArray[np.int64], axis: int) -> None:
    values = to_array(tensor)
    along = [-1 if i == axis else 1 for i in range(values.ndim)]
    scaled = np.ldexp(values, exponents.reshape(along)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))


class _Regions:
    """Union-find over tensor names; `broken` are those whose values must stay as they are."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.stored = initializers(graph)
        self.made = producers(graph)
        self.parent: dict[str, str] = {}
        self.broken: set[str] = {v.name for v in [*graph.input, *graph.output]}
        readers = consumers(graph)
        self.shared = {name for name in self.stored if len(readers.get(name, [])) > 1}

    def find(self) -> list[Region]:
        for node in self.graph.node:
            self._visit(node)
        unsound = {self._root(name) for name in self.broken}
        found: dict[str, Region] = {}
        for node in self.graph.node:
            for name in node.output:
                root = self._root(name)
                if root not in unsound:
                    found.setdefault(root, Region()).tensors.append(name)
        for node in self.graph.node:
            if self._is_plain(node):
                if made := found.get(self._root(node.output[0])):
                    made.makers.append(node)
                if read := found.get(self._root(node.input[0])):
                    read.readers.append(node)
        return [region for region in found.values() if self._is_sound(region)]

    def _is_sound(self, region: Region) -> bool:
        """Return whether convolutions make and read it, which agree on how many channels it has."""
        made = {self._channels(n)[int(n.op_type == "ConvTranspose")] for n in region.makers}
        read = {self._num_inputs(n) for n in region.readers}
        return len(made | read) == 1 and bool(made and read)

    def _num_inputs(self, node: onnx.NodeProto) -> int:
        first, second = self._channels(node)
        return first if node.op_type == "ConvTranspose" else second * attribute(node, "group", 1)

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [n for n in node.input if n and n not in self.stored]
        if self._is_plain(node):
            return
        if node.op_type == "Mul" and len(inputs) == 2 and self._gate(inputs):
            gate = self._gate(inputs)
            self.broken.add(gate)
            self._join(node.output[0], *(n for n in inputs if n != gate))
        elif self._carries(node) or (node.op_type == "Add" and len(inputs) == 2):
            self._join(*node.output, *inputs)
        else:
            self.broken.update([*inputs, *node.output])

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Return whether it is a convolution whose channels can be scaled on both sides."""
        if node.op_type not in {"Conv", "ConvTranspose"} or not self._owns(node.input[1:]):
            return False
        group = attribute(node, "group", 1)
        is_depthwise = node.op_type == "Conv" and self._channels(node) == (group, 1)
        return group == 1 or is_depthwise

    def _channels(self, node: onnx.NodeProto) -> tuple[int, int]:
        first, second = self.stored[node.input[1]].dims[:2]
        return first, second

    def _owns(self, names: Iterable[str]) -> bool:
        return all(n in self.stored and n not in self.shared for n in names if n)

    def _gate(self, inputs: list[str]) -> str:
        """Return the factor between 0 and 1, which keeps its values, or nothing."""
        gates = [n for n in inputs if n in self.made and self.made[n].op_type in _GATES]
        return gates[0] if len(gates) == 1 else ""

    def _carries(self, node: onnx.NodeProto) -> bool:
        if node.op_type in _CARRIERS:
            return len([n for n in node.output if n]) == 1
        if node.op_type == "Resize":
            return all(n in self.stored for n in node.input[1:] if n)
        return node.op_type in _MEANS and self._is_spatial(node)

    def _is_spatial(self, node: onnx.NodeProto) -> bool:
        axes = attribute(node, "axes", ())
        if len(node.input) > 1 and node.input[1] in self.stored:
            axes = to_array(self.stored[node.input[1]]).ravel().tolist()
        return attribute(node, "keepdims", 1) == 1 and {a % 4 for a in axes} == {2, 3}

    def _root(self, name: str) -> str:
        while (above := self.parent.get(name, name)) != name:
            name = above
        return name

    def _join(self, *names: str) -> None:
        first = self._root(names[0])
        for name in names[1:]:
            self.parent[self._root(name)] = first
