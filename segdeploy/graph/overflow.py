"""What float16 cannot hold stays in float32: the islands of a cast graph, found on real images.

An activation of 1e5 is infinity in float16, and what reads it is lost. So the graph is run in
float32 on calibration images, and each node that reads or makes a tensor beyond the range (with
room for images that were not seen) is an island, with casts at its borders. Some operators overflow
inside, although all that they read and make is small: sums and means over large maps, squares in
norms. What they add up is computed beside them and held against the same limit. The accumulators
of convolutions and matrix products are float32 in every runtime that we know: only their result
counts.

Weights beyond the range need no images. A constant that vanishes (an epsilon of 1e-12) is zero
in float16, and its node an island as well. bfloat16 has the range of float32: nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.calibrate import Batches, find_peaks
from segdeploy.graph.fp16 import FP16_MAX, FP32_SLOTS
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    element_types,
    initializers,
    producers,
    to_array,
)

HEADROOM = 4.0
"""How much larger the activations of unseen images may be than those of calibration images."""
LIMIT = FP16_MAX / HEADROOM
_SHAPE_READERS = {"Shape", "Size"}
_SPATIAL, _ALL_BUT_BATCH, _ONE = "island_spatial_axes", "island_inner_axes", "island_one"
_CONSTANTS = {_SPATIAL: [2, 3], _ALL_BUT_BATCH: [1, 2, 3], _ONE: [1]}
_OVER_AXES = {
    "GlobalAveragePool": ("ReduceL1", _SPATIAL),
    "InstanceNormalization": ("ReduceSumSquare", _SPATIAL),
    # More than one group adds up: on the safe side.
    "GroupNormalization": ("ReduceSumSquare", _ALL_BUT_BATCH),
}
_SUMS = {"ReduceSum": "ReduceL1", "ReduceMean": "ReduceL1", "ReduceL2": "ReduceSumSquare"}


@dataclass(frozen=True)
class Peaks:
    """Largest magnitudes seen: of tensors by name, and of what a node (by name) adds up inside."""

    tensors: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)


def observe_peaks(model: onnx.ModelProto, batches: Batches) -> Peaks:
    """Return the peaks of a plain float32 graph over images, streaming, in one pass.

    Raises:
        DataError: If there is no batch, or an activation is not finite in float32 already.
    """
    names = _pixel_tensors(model)
    watched = copy_model(model)
    watched.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values, np.int64), name)
        for name, values in _CONSTANTS.items()
    )
    sums: dict[str, str] = {}
    for node in list(watched.graph.node):
        if node.input and node.input[0] in names and (added := _sum_nodes(node)):
            watched.graph.node.extend(added)
            sums[node.name] = added[-1].output[0]
    found = find_peaks(watched, [*names, *sums.values()], batches)
    return Peaks(
        {name: found[name] for name in names}, {node: found[name] for node, name in sums.items()}
    )


def _pixel_tensors(model: onnx.ModelProto) -> dict[str, None]:
    """Return the float32 tensors that depend on the input's values, in order."""
    types, stored = element_types(model), initializers(model.graph)
    found = {v.name: None for v in model.graph.input if v.name not in stored}
    for node in model.graph.node:
        if node.op_type not in _SHAPE_READERS and any(name in found for name in node.input):
            found |= {n: None for n in node.output if types.get(n) == TensorProto.FLOAT}
    return found


def _sum_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes that compute what `node` adds up inside; the last one's output is it."""
    result = f"{node.output[0]}_added_up"
    data = node.input[0]
    if node.op_type in _SUMS:
        inputs = [data, *node.input[1:]]
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return [helper.make_node(_SUMS[node.op_type], inputs, [result], **kept)]
    if node.op_type in _OVER_AXES:
        operator, axes = _OVER_AXES[node.op_type]
        return [helper.make_node(operator, [data, axes], [result])]
    if node.op_type == "AveragePool":
        return _window_nodes(node, result)
    if node.op_type == "LayerNormalization":
        square = helper.make_node("Mul", [data, data], [f"{result}_square"])
        flat = helper.make_node(
            "Flatten", [f"{result}_square"], [f"{result}_flat"], axis=attribute(node, "axis", -1)
        )
        total = helper.make_node("ReduceL1", [f"{result}_flat", _ONE], [result])
        return [square, flat, total]
    if node.op_type == "Softmax":  # The largest share is exp(0) / sum.
        top = helper.make_node(
            "TopK", [node.output[0], _ONE], [f"{result}_top", f"{result}_index"],
            axis=attribute(node, "axis", -1),
        )  # fmt: skip
        return [top, helper.make_node("Reciprocal", [f"{result}_top"], [result])]
    return []


def _window_nodes(node: onnx.NodeProto, result: str) -> list[onnx.NodeProto]:
    """Return nodes that compute the sum of |x| over each window of a pooling node."""
    area = float(np.prod(attribute(node, "kernel_shape")))
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return [
        helper.make_node("Abs", [node.input[0]], [f"{result}_size"]),
        helper.make_node("AveragePool", [f"{result}_size"], [f"{result}_mean"], **kept),
        helper.make_node("Constant", [], [f"{result}_area"], value_float=area),
        helper.make_node("Mul", [f"{result}_mean", f"{result}_area"], [result]),
    ]


def find_islands(model: onnx.ModelProto, peaks: Peaks | None = None) -> dict[str, str]:
    """Return the nodes that float16 cannot compute, each with the reason in words.

    Args:
        model: A float32 graph, plain or with the Q/DQ nodes of `insert_qdq`.
        peaks: Of the plain graph; without them only weights beyond the range are seen.

    Raises:
        BuildError: If a node that must stay has no name to call it by.
    """
    seen = Peaks() if peaks is None else peaks
    tensors = _through_qdq(model, seen.tensors)
    stored = initializers(model.graph)
    islands: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in _SHAPE_READERS:
            reasons = _reasons(node, stored, tensors, seen.sums, is_observed=peaks is not None)
            if reason := next(reasons, None):
                islands[node.name] = reason
    if "" in islands:
        raise BuildError(f"A node without a name must stay in float32: it {islands['']}.")
    readers, made = consumers(model.graph), producers(model.graph)
    for name in list(islands):  # The int8 weights of an island are read as float32 too.
        for weight in _weight_readings(name, model, made):
            if all(reader.name in islands for reader in readers[weight.output[0]]):
                islands[weight.name] = f"only {name} reads it"
    return islands


def _reasons(
    node: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
    tensors: Mapping[str, float],
    sums: Mapping[str, float],
    *,
    is_observed: bool,
) -> Iterator[str]:
    fixed = FP32_SLOTS.get(node.op_type, set())
    for index, name in enumerate(node.input):
        tensor = stored.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or index in fixed:
            continue
        values = np.abs(to_array(tensor))
        if (largest := float(values.max(initial=0))) > FP16_MAX and np.isfinite(largest):
            yield f"its weight {name} reaches {largest:.3g}"
        if is_observed and _vanishes(values):
            yield f"its constant {name} of {largest:.3g} is 0 in float16"
    for name in node.input:
        if tensors.get(name, 0.0) > LIMIT:
            yield f"reads {name}, which reaches {tensors[name]:.3g}"
    for name in node.output:
        if tensors.get(name, 0.0) > LIMIT:
            yield f"makes {name}, which reaches {tensors[name]:.3g}"
    if sums.get(node.name, 0.0) > LIMIT:
        yield f"adds up to {sums[node.name]:.3g} inside"


def _vanishes(magnitudes: NDArray[Any]) -> bool:
    """Return whether a constant (one number, not weights) is zero in float16 only."""
    if magnitudes.size != 1 or not magnitudes.any():
        return False
    return not magnitudes.astype(np.float16).any()


def _through_qdq(model: onnx.ModelProto, tensors: Mapping[str, float]) -> dict[str, float]:
    """Return the peaks, those of dequantised tensors included."""
    known = dict(tensors)
    made, stored = producers(model.graph), initializers(model.graph)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        before = made.get(node.input[0])
        if before is not None and before.op_type == "QuantizeLinear":
            known[node.output[0]] = known.get(before.input[0], 0.0)
        elif node.input[0] in stored:
            whole, scale = (to_array(stored[name]) for name in node.input[:2])
            along = [-1 if axis == attribute(node, "axis", 1) else 1 for axis in range(whole.ndim)]
            steps = scale.reshape(along) if scale.size > 1 else scale
            known[node.output[0]] = float(np.abs(whole.astype(np.float64) * steps).max(initial=0))
    return known


def _weight_readings(
    name: str, model: onnx.ModelProto, made: Mapping[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    node = next(n for n in model.graph.node if n.name == name)
    before = [made[i] for i in node.input if i in made and i != node.input[0]]
    return [n for n in before if n.op_type == "DequantizeLinear" and n.input[0] not in made]


def describe_cast(model: onnx.ModelProto, islands: Mapping[str, str]) -> dict[str, Any]:
    """Return what a manifest keeps of a cast that images were seen for.

    `underflow` counts the nonzero weights that are cast, those of them that float16 holds as zero,
    and those that it holds with fewer digits.
    """
    to_zero = subnormal = total = 0
    cast = {i for n in model.graph.node if n.name not in islands for i in n.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name in cast:
            values = np.abs(to_array(tensor))
            values = values[values > 0]
            total += values.size
            is_zero = values < _HALF_SMALLEST
            to_zero += int(is_zero.sum())
            subnormal += int(((values < _SMALLEST_NORMAL) & ~is_zero).sum())
    return {
        "islands": [{"node": name, "reason": reason} for name, reason in islands.items()],
        "underflow": {"weights": total, "to_zero": to_zero, "subnormal": subnormal},
    }


_SMALLEST_NORMAL = 2.0**-14
_HALF_SMALLEST = 2.0**-25  # What is less rounds to zero.
