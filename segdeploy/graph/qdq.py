"""Insert Q/DQ pairs: int8 as nodes of the graph.

Weights are stored as int8 with one scale per output channel; biases stay float32 (TensorRT refuses
int32 there; ONNX Runtime quantises them itself). Activations have one scale a tensor, on the grid
that the placement says: symmetric int8 with zero point 0, which every runtime takes, or asymmetric
uint8, whose 255 steps all lie where the values are. ONNX Runtime fuses DQ -> Conv -> Q into
QLinearConv.

A graph that `cast_to_fp16` will cast afterwards needs scales that float16 can hold: they are
rounded before anything is quantised by them (`scale_type`), so that the cast changes no scale and
weights lie on the very grid that the runtime reads them by.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.clipping import LEVELS, TensorRange
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.pixel_rounding import round_for_pixels
from segdeploy.graph.placement import Placement, Weight
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    initializers,
    rename_input,
    replace_initializers,
    replace_nodes,
    to_array,
)

ScaleType = type[np.float32] | type[np.float16]

_ZERO = "int8_zero_point"
PIXEL_LEVELS = 63
"""Largest weight over pixels. A CPU without VNNI adds two products of bytes in int16 and saturates:
2 x 255 x 63 fits, 2 x 255 x 127 does not, and pixels do reach 255 side by side."""
_BIAS_LIMIT = 2.0**30  # A bias in units of its int32 grid must stay well inside int32.


CONTRACT = PassContract("Q/DQ insertion", frozenset({Need.FLAT, Need.FLOAT, Need.NAMED}))


def insert_qdq(
    model: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, TensorRange],
    scale_type: ScaleType = np.float32,
) -> onnx.ModelProto:
    """Return the float32 graph with Q/DQ pairs; inputs and outputs keep their types.

    Args:
        model: The plain fp32 graph.
        placement: What `place_qdq` found in it.
        ranges: Of all tensors that the placement observes.
        scale_type: np.float16 makes every scale a number that float16 can hold.

    Raises:
        BuildError: If the graph has control flow, a placed tensor has no range, or a scale exceeds
            float16.
    """
    CONTRACT.check_before(model)
    missing = [name for name in placement.observed if name not in ranges]
    if missing:
        raise BuildError(f"The calibration has no range for {', '.join(missing[:5])}.")
    quantized = copy_model(model)
    _QdqInsertion(quantized.graph, placement, ranges, scale_type).apply()
    del quantized.graph.value_info[:]
    return CONTRACT.check_after(model, quantized)


class _QdqInsertion:
    def __init__(
        self,
        graph: onnx.GraphProto,
        placement: Placement,
        ranges: Mapping[str, TensorRange],
        scale_type: ScaleType,
    ) -> None:
        self.graph = graph
        self.placement = placement
        self.is_symmetric = placement.grid == "symmetric"
        self.ranges = {n: ranges[placement.source.get(n, n)] for n in placement.activations}
        self.scales = {n: self._scale(found) for n, found in self.ranges.items()}
        self.scale_type = scale_type
        self.stored = initializers(graph)
        self.added: dict[str, onnx.TensorProto] = {}

    def apply(self) -> None:
        readers = consumers(self.graph)
        weights = [
            node for w in self.placement.weights for node in self._quantize_weight(w, readers)
        ]
        for name, chosen in self.placement.activations.items():
            for node in readers.get(name, []):
                if chosen is None or node.name in chosen:
                    rename_input(node, name, f"{name}_dq")
        nodes = weights
        for value in self.graph.input:
            nodes += self._pair(value.name)
        for node in self.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self._pair(name)
        replace_nodes(self.graph, nodes)
        replace_initializers(self.graph, [*self.stored.values(), *self.added.values()])

    def _pair(self, name: str) -> list[onnx.NodeProto]:
        if name not in self.placement.activations:
            return []
        step = round_scales(np.asarray(self.scales[name], np.float32), self.scale_type, name)
        grid = [self._add(f"{name}_scale", step), self._zero_point(name)]
        return [
            helper.make_node(
                "QuantizeLinear", [name, *grid], [f"{name}_q"], name=f"{name}_quantize"
            ),
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", *grid], [f"{name}_dq"],
                name=f"{name}_dequantize",
            ),
        ]  # fmt: skip

    def _scale(self, found: TensorRange) -> float:
        return found.scale if self.is_symmetric else found.bytes.scale

    def _zero_point(self, name: str) -> str:
        """Return the stored zero point of a tensor's grid; equal ones are one."""
        if self.is_symmetric:
            return self._add(_ZERO, np.asarray(0, np.int8))
        zero = self.ranges[name].bytes.zero_point
        return self._add(f"uint8_zero_point_{zero}", np.asarray(zero, np.uint8))

    def _quantize_weight(
        self, weight: Weight, readers: Mapping[str, list[onnx.NodeProto]]
    ) -> list[onnx.NodeProto]:
        values = to_array(self.stored[weight.name])
        nodes = [n for n in readers[weight.name] if n.input[1] == weight.name]
        floor = self._bias_floor(nodes, values, weight.axis)
        reads_pixels = any(self._reads_pixels(node) for node in nodes)
        limit = PIXEL_LEVELS if reads_pixels else LEVELS
        scale = round_scales(
            channel_scales(values, weight.axis, floor, limit), self.scale_type, weight.name
        )
        grid = np.expand_dims(scale, tuple(i for i in range(values.ndim) if i != weight.axis))
        if reads_pixels:
            whole = round_for_pixels(values / grid, limit).astype(np.int8)
        else:
            whole = np.clip(np.rint(values / grid), -LEVELS, LEVELS).astype(np.int8)
        names = [
            self._add(f"{weight.name}_q", whole),
            self._add(f"{weight.name}_scale", scale),
            self._add(f"{weight.name}_zero_point", np.zeros(scale.shape, np.int8)),
        ]
        result = f"{weight.name}_dq"
        for node in nodes:
            rename_input(node, weight.name, result)
        return [
            helper.make_node(
                "DequantizeLinear", names, [result], name=f"{weight.name}_dequantize",
                axis=weight.axis,
            )
        ]  # fmt: skip

    def _reads_pixels(self, node: onnx.NodeProto) -> bool:
        """Return whether a convolution reads the picture: the input of the graph, all channels."""
        inputs = {value.name for value in self.graph.input} - set(self.stored)
        is_full = node.op_type == "Conv" and attribute(node, "group", 1) == 1
        return is_full and node.input[0] in inputs

    def _bias_floor(
        self, nodes: list[onnx.NodeProto], values: NDArray[np.float32], axis: int
    ) -> NDArray[np.float64]:
        """Return the least scale per channel at which every bias fits ONNX Runtime's int32 grid."""
        floor = np.zeros(values.shape[axis], np.float64)
        for node in nodes:
            is_fused = node.input[0] in self.scales
            if is_fused and len(node.input) > 2 and node.input[2] in self.stored:
                bias = np.abs(to_array(self.stored[node.input[2]])).astype(np.float64)
                floor = np.maximum(floor, bias / (self.scales[node.input[0]] * _BIAS_LIMIT))
        return floor

    def _add(self, name: str, values: NDArray[np.generic]) -> str:
        if name in self.stored:
            raise BuildError(f"The graph has a tensor {name} already; is it quantised?")
        self.added[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def channel_scales(
    values: NDArray[np.float32], axis: int, floor: NDArray[np.float64], limit: int = LEVELS
) -> NDArray[np.float32]:
    """Return one step per channel along `axis`: max|w| / limit, at least `floor`, never zero."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    steps = np.maximum(np.abs(values).max(axis=others).astype(np.float64) / limit, floor)
    tiny = np.finfo(np.float32).tiny
    return np.where(steps < tiny, 1.0, steps).astype(np.float32)


def round_scales(
    scales: NDArray[np.float32], scale_type: ScaleType, name: str
) -> NDArray[np.float32]:
    """Return the scales (steps of a grid) as the next larger numbers that `scale_type` holds.

    Upwards, so that 127 steps still reach the largest value, and no step becomes zero.

    Raises:
        BuildError: If one exceeds its range; `name` says whose it is.
    """
    if scale_type is np.float32:
        return scales
    with np.errstate(over="ignore"):
        rounded = scales.astype(scale_type)
        is_less = rounded.astype(np.float32) < scales
        rounded = np.where(is_less, np.nextafter(rounded, scale_type(np.inf)), rounded)
    if not np.isfinite(rounded).all():
        raise BuildError(
            f"The int8 step of {name} is {float(np.max(scales)):.3g}, beyond the fp16 range.",
            hint="Its activations would overflow in fp16 as well: export fp32 instead.",
        )
    return np.asarray(rounded, np.float32)


def half_scale(scale: float) -> float:
    """Return a scale as a graph stores it whose rest is float16."""
    return float(round_scales(np.asarray(scale, np.float32), np.float16, "a tensor"))
