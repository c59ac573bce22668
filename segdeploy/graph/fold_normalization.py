"""Normalisation as part of the first convolution, where that changes nothing but rounding.

Under the `image` contract a graph computes (pixel x scale - mean) / std before anything else. Scale
and 1/std are factors of an input channel, so they go into the weights that read it, and a swap of
red and blue is a swap of those weights. The mean is not that simple: a convolution with padding
sees zeros around the *centred* image. With the mean in the bias they would stand for black pixels
instead of average ones, and the borders of the answer would be wrong; so it goes there only where
nothing is padded, and stays one subtraction elsewhere.

What is left to do before the graph is a `PreprocessSpec` again (scale 1, std 1), so calibration and
`image_input` need not know that anything was folded. Done before the precision passes: weights are
rounded to int8 or float16 once. The products are formed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    initializers,
    replace_initializers,
    tensor_names,
    to_array,
)

CONTRACT = PassContract("The folding of the normalisation", frozenset({Need.FLAT, Need.FLOAT}))
_SHAPE_READERS = {"Shape", "Size"}
_ONE = (1.0, 1.0, 1.0)


def fold_normalization(
    model: onnx.ModelProto, spec: PreprocessSpec
) -> tuple[onnx.ModelProto, PreprocessSpec]:
    """Return a plain graph whose input is pixels, and how it wants them; else both as they came.

    The input of the graph keeps name and shape, but is (pixel - mean) in RGB order, mean in 0..255,
    or the pixels themselves. It stays as it is where others than convolutions with stored weights
    read it.
    """
    CONTRACT.check_before(model)
    changed = copy_model(model)
    stored = initializers(changed.graph)
    found = _first_convolutions(changed.graph, stored)
    if not found:
        return model, spec
    mean = np.asarray(spec.mean, np.float64) / spec.scale
    factor = spec.scale / np.asarray(spec.std, np.float64)
    is_padded = any(map(_is_padded, found))
    for index, node in enumerate(found):
        weight = to_array(stored[node.input[1]]).astype(np.float64)
        pixels = weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))
        if not is_padded:
            _set_bias(node, index, stored, -(pixels.sum(axis=(2, 3)) @ mean))
        if spec.channel_order == "bgr":
            pixels = pixels[:, ::-1]
        node.input[1] = _store(stored, f"pixel_weight_{index}", pixels)
    if spec.channel_order == "bgr":
        mean = mean[::-1]
    left = (float(mean[0]), float(mean[1]), float(mean[2])) if is_padded else (0.0, 0.0, 0.0)
    replace_initializers(changed.graph, stored.values())
    folded = replace(spec, channel_order="rgb", scale=1.0, mean=left, std=_ONE)
    return CONTRACT.check_after(model, changed), folded


def _first_convolutions(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the convolutions that read the only input, or nothing if others read it too."""
    inputs = [value for value in graph.input if value.name not in stored]
    taken = {value.name for value in graph.output} | set(tensor_names(graph))
    if len(inputs) != 1 or any(name.startswith("pixel_") for name in taken):
        return []
    name = inputs[0].name
    readers = [n for n in consumers(graph).get(name, []) if n.op_type not in _SHAPE_READERS]
    return readers if all(_can_fold(node, name, stored) for node in readers) else []


def _can_fold(node: onnx.NodeProto, source: str, stored: dict[str, onnx.TensorProto]) -> bool:
    weight = stored.get(node.input[1]) if len(node.input) > 1 else None
    return (
        node.op_type == "Conv"
        and list(node.input).count(source) == 1
        and attribute(node, "group", 1) == 1
        and weight is not None
        and weight.data_type == TensorProto.FLOAT
        and len(weight.dims) == 4
        and weight.dims[1] == 3
        and all(name in stored for name in node.input[2:] if name)
    )


def _is_padded(node: onnx.NodeProto) -> bool:
    if attribute(node, "auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        return True
    return any(attribute(node, "pads", ()))


def _set_bias(
    node: onnx.NodeProto,
    index: int,
    stored: dict[str, onnx.TensorProto],
    shift: NDArray[np.float64],
) -> None:
    has_bias = len(node.input) > 2 and node.input[2]
    bias = to_array(stored[node.input[2]]).astype(np.float64) if has_bias else 0.0
    name = _store(stored, f"pixel_bias_{index}", bias + shift)
    del node.input[2:]
    node.input.append(name)


def _store(stored: dict[str, onnx.TensorProto], name: str, values: NDArray[np.floating]) -> str:
    stored[name] = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
    return name
