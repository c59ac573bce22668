"""Weights of half range, for processors on which oneDNN's products of bytes overflow.

Without VNNI its kernels add two products of a byte by a byte in int16: 2 x 255 x 127 does not fit,
and saturates in silence where signed maps have large bytes side by side. With weights of -64 to 64
every sum fits. They are halved when a model is opened, so that files keep the
8 bits where they serve. Depthwise kernels add no two products in int16, and keep theirs.

An odd weight lies between two halves; neighbours are rounded to either side in turn, so that the
sum of a channel's weights stays. Zero points of its input may have been folded into the bias with
that sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.frameworks.packages import import_package

_LARGEST = 64  # 2 x 255 x 64 < 2^15.


def halve_weights(model: Any) -> int:
    """Bring the int8 weights of an `openvino.Model` into half their range, in place.

    A channel is halved, and its scale doubled, where it has a larger weight.

    Returns:
        How many constants were changed.
    """
    constant_of = import_package("openvino", "openvino").op.Constant
    count = 0
    for node in model.get_ordered_ops():
        scaling = _scaling_of(node)
        if scaling is None:
            continue
        scale = _value(scaling.input_value(1))
        weight = np.asarray(node.data)
        if scale is None or scale.ndim not in {0, weight.ndim} or _is_depthwise(scaling, weight):
            continue
        halved, doubled = halve(weight, scale.reshape(scale.shape or (1,) * weight.ndim))
        if halved is weight:
            continue
        constant = constant_of(halved)
        constant.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(constant.output(0))
        scaling.input(1).replace_source_output(constant_of(doubled).output(0))
        count += 1
    return count


def halve(
    weight: NDArray[np.int8], scale: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights in -64 .. 64 and their scales; the same arrays where they are so already.

    Args:
        weight: Of any rank.
        scale: Of the same rank: 1 along each axis whose weights share a scale.
    """
    shared = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
    large = np.abs(weight.astype(np.int16)).max(axis=shared, keepdims=True) > _LARGEST
    if not large.any():
        return weight, scale
    own = tuple(axis for axis in range(weight.ndim) if axis not in shared)
    order = (*own, *shared)
    rows = np.transpose(weight, order).astype(np.int16)
    flat = rows.reshape(int(np.prod([weight.shape[axis] for axis in own], dtype=np.int64)), -1)
    is_odd = flat & 1
    up = is_odd & np.cumsum(is_odd, axis=1)  # 1 for the first odd weight, 0 for the second ...
    half = (flat >> 1) + up  # The shift rounds down.
    back = np.transpose(half.reshape(rows.shape), np.argsort(order))
    return (
        np.where(large, back, weight).astype(np.int8),
        np.where(large, scale * np.float32(2), scale).astype(np.float32),
    )


def _scaling_of(node: Any) -> Any:
    """Return the product that dequantises an int8 constant of two axes or more, or None."""
    if _kind(node) != "Constant" or len(node.get_output_shape(0)) < 2:
        return None
    if node.get_output_element_type(0).get_type_name() != "i8":
        return None
    convert = _only_reader(node, "Convert")
    if convert is None:
        return None
    shifted = _only_reader(convert, "Subtract")
    if shifted is not None:
        zero_point = _value(shifted.input_value(1))
        if zero_point is None or zero_point.any():
            return None
    return _only_reader(shifted or convert, "Multiply")


def _is_depthwise(scaling: Any, weight: NDArray[np.int8]) -> bool:
    """Return whether all that reads a weight (C, 1, ...) are convolutions of one channel each."""
    readers = _readers(scaling)
    readers += [other for node in readers if _kind(node) == "Reshape" for other in _readers(node)]
    kinds = {_kind(node) for node in readers} - {"Reshape", "ShapeOf"}
    per_channel = int(np.prod(weight.shape[-2:]))
    return kinds == {"GroupConvolution"} and weight.size == weight.shape[0] * per_channel


def _readers(node: Any) -> list[Any]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]


def _kind(node: Any) -> str:
    return str(node.get_type_name())


def _only_reader(node: Any, kind: str) -> Any:
    readers = list(node.output(0).get_target_inputs())
    if len(readers) != 1 or readers[0].get_index() != 0:
        return None
    reader = readers[0].get_node()
    return reader if _kind(reader) == kind else None


def _value(output: Any) -> NDArray[np.float32] | None:
    """Return what a constant, cast or reshaped, is in f32, in the shape it ends with."""
    shape = tuple(output.get_shape())
    node = output.get_node()
    while _kind(node) in {"Convert", "Reshape"}:
        node = node.input_value(0).get_node()
    if _kind(node) != "Constant":
        return None
    return np.asarray(node.data, np.float32).reshape(shape)
