"""Bias correction: what rounding shifts on average goes back into the bias, channel by channel.

Rounded weights and clipped activations move the mean of a convolution's output, and a shift is
worse than noise of its size: it moves every pixel the same way (M. Nagel et al., ICCV 2019, 4.2).
The shift is measured, not estimated: beside each convolution of the float graph stands its int8
twin on the same float input, and the mean of their difference over all pixels of the calibration
images is added to the bias. As every twin reads what the float graph computes, one pass corrects
all layers, and none corrects what an earlier one has corrected already.

Sums of one image leave the graph, and are added up as integers: the result does not depend on the
order of the images, and memory does not grow with their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError, DataError
from segdeploy.graph.calibrate import Batches, open_graph, run_all
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.proto import (
    copy_model,
    initializers,
    replace_initializers,
    to_array,
)

CONTRACT = PassContract("Bias correction", frozenset({Need.FLAT}))
_UNIT = 2.0**40  # Sums are kept in steps of 1e-12.
_AXES = "bias_correction_axes"
_QDQ = {"QuantizeLinear", "DequantizeLinear"}


def correct_bias(
    plain: onnx.ModelProto, quantized: onnx.ModelProto, batches: Batches
) -> onnx.ModelProto:
    """Return the int8 graph with corrected biases.

    Args:
        plain: The fp32 graph.
        quantized: What `insert_qdq` made of it.
        batches: Gives the calibration batches.

    Raises:
        BuildError: If the graph was corrected before.
        DataError: If there is no batch, or an activation is not finite.
    """
    CONTRACT.check_before(quantized)
    shifts = measure_shifts(plain, quantized, batches)
    corrected = copy_model(quantized)
    graph = corrected.graph
    stored = initializers(graph)
    added = []
    for node in graph.node:
        shift = shifts.get(node.name)
        if shift is None:
            continue
        old = node.input[2] if len(node.input) > 2 else ""
        before = to_array(stored[old]).astype(np.float64) if old else 0.0
        name = f"{node.name}_corrected_bias"
        if name in stored:
            raise BuildError(f"The graph has a tensor {name} already; is it corrected?")
        added.append(numpy_helper.from_array((before + shift).astype(np.float32), name))
        node.input[:] = [*node.input[:2], added[-1].name]
    replace_initializers(graph, [*stored.values(), *added])
    return CONTRACT.check_after(quantized, corrected)


def measure_shifts(
    plain: onnx.ModelProto, quantized: onnx.ModelProto, batches: Batches
) -> dict[str, NDArray[np.float64]]:
    """Return by node the mean (C,) of float minus int8 output over all pixels of the images."""
    watched, outputs = _with_twins(plain, quantized)
    sums: dict[str, NDArray[Any]] = dict.fromkeys(outputs, np.zeros(1, object))
    pixels = dict.fromkeys(outputs, 0)
    for found in run_all(open_graph(watched), batches):
        for node in outputs:
            added = found[f"{node}_shift"].astype(np.float64)
            if not np.isfinite(added).all():
                raise DataError(f"Calibration: the output of {node} is not finite on some image.")
            whole = [int(value) for value in np.rint(added * _UNIT)]
            sums[node] = sums[node] + np.asarray(whole, object)
            pixels[node] += int(np.prod(found[f"{node}_shape"][[0, 2, 3]]))
    if not all(pixels.values()):
        raise DataError("Calibration needs at least one image.")
    return {
        node: np.asarray([int(s) / (_UNIT * pixels[node]) for s in sums[node]]) for node in outputs
    }


def _with_twins(
    plain: onnx.ModelProto, quantized: onnx.ModelProto
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the float graph with the int8 twin of each convolution, and the convolutions' names.

    Tensors that Q/DQ insertion adds have names of their own, so both graphs fit into one.
    """
    watched = copy_model(plain)
    graph = watched.graph
    before = {node.name: node for node in plain.graph.node}
    known = set(initializers(plain.graph))
    stored = [t for t in quantized.graph.initializer if t.name not in known]
    stored.append(numpy_helper.from_array(np.asarray([0, 2, 3], np.int64), _AXES))
    del graph.output[:]
    names = []
    for node in quantized.graph.node:
        if node.op_type in _QDQ:
            graph.node.append(node)
            continue
        original = before[node.name]
        if node.op_type not in {"Conv", "ConvTranspose"} or original.input == node.input:
            continue
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = f"{node.name}_twin", f"{node.name}_int8"
        graph.node.append(twin)
        names.append(node.name)
        _add_outputs(graph, node.name, original.output[0], twin.output[0])
    replace_initializers(graph, [*initializers(graph).values(), *stored])
    _sort(graph)
    return watched, names


def _add_outputs(graph: onnx.GraphProto, name: str, exact: str, rounded: str) -> None:
    shift, shape, difference = f"{name}_shift", f"{name}_shape", f"{name}_difference"
    graph.node.extend(
        [
            helper.make_node("Sub", [exact, rounded], [difference], name=difference),
            helper.make_node("ReduceSum", [difference, _AXES], [shift], name=shift, keepdims=0),
            helper.make_node("Shape", [exact], [shape], name=shape),
        ]
    )
    graph.output.extend(
        [
            helper.make_tensor_value_info(shift, TensorProto.FLOAT, None),
            helper.make_tensor_value_info(shape, TensorProto.INT64, [4]),
        ]
    )


def _sort(graph: onnx.GraphProto) -> None:
    """Put the nodes into topological order, in place."""
    ready = {v.name for v in graph.input} | set(initializers(graph)) | {""}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if ready.issuperset(node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        waiting = later
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
