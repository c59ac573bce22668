"""Ranges for int8 from images, streaming: memory does not grow with their number.

Images run one at a time and only integers are added up, so the result depends neither on the order
of the images nor on how a caller groups them; images may differ in size. Whole activations leave
the graph, of as many tensors at once as fit into GROUP_BYTES for the largest image; each group of
tensors is one pass over the images, through no more of the graph than it needs.

What an activation maps to a constant anyway is not protected: below -3 HardSwish is zero, so in
choosing the range of a tensor that only HardSwish reads its values count from -3 on; of several
such readers the lowest floor holds. The histograms have the values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import DataError
from segdeploy.core.target import ClipMethod
from segdeploy.frameworks.onnxruntime import require_onnxruntime, session_options
from segdeploy.graph.clipping import Histogram, TensorRange, choose_clip
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    graph_bytes,
    producers,
    replace_nodes,
)

GROUP_BYTES = 2**29  # What one run may bring out of the graph at once.
_ENDS = ("ReduceMin", "ReduceMax")
_NO_IMAGE = "Calibration needs at least one image."

Batches = Callable[[], Iterable[NDArray[np.float32]]]


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Batches,
    method: ClipMethod = ClipMethod.MSE,
    percentile: float = 99.99,
) -> dict[str, TensorRange]:
    """Return the range of each tensor: `count_values`, and of each histogram `choose_clip`.

    Args:
        model: The plain fp32 graph, one input.
        tensors: Names of float32 tensors in it.
        batches: Gives the same float32 NCHW batches each time it is called.
        method: How a range is chosen from the values.
        percentile: Share in % of values within the range, for that method.

    Raises:
        ConfigError: If `percentile` is not within (0, 100].
        DataError: If there is no batch, or an activation is not finite.
    """
    found = count_values(model, tensors, batches)
    return {name: choose_clip(found[name], method, percentile) for name in tensors}


def count_values(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches
) -> dict[str, Histogram]:
    """Return a histogram of each tensor's values, with its floor; else as `calibrate`."""
    floors = _floors(model, tensors)
    found = {name: Histogram(floors.get(name)) for name in tensors}
    for group in _groups(tensors, _count_elements(model, tensors, batches)):
        session = open_graph(select_outputs(model, group))
        for number, values in enumerate(run_all(session, batches), start=1):
            for name in group:
                if not found[name].add(values.pop(name)):
                    raise _not_finite(name, number)
    return found


def find_peaks(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches
) -> dict[str, float]:
    """Return the largest magnitude of each tensor, in one pass; only scalars leave the graph.

    Raises:
        DataError: If there is no batch, or an activation is not finite.
    """
    extended = copy_model(model)
    del extended.graph.output[:]
    for name in tensors:
        for operator in _ENDS:
            result = f"{operator}_of_{name}"
            extended.graph.node.append(
                helper.make_node(operator, [name], [result], name=result, keepdims=0)
            )
            extended.graph.output.append(
                helper.make_tensor_value_info(result, TensorProto.FLOAT, [])
            )
    peaks = dict.fromkeys(tensors, 0.0)
    number = 0
    for number, found in enumerate(run_all(open_graph(extended), batches), start=1):
        for name in tensors:
            ends = [float(found[f"{operator}_of_{name}"]) for operator in _ENDS]
            if not np.isfinite(ends).all():
                raise _not_finite(name, number)
            peaks[name] = max(peaks[name], *map(abs, ends))
    if not number:
        raise DataError(_NO_IMAGE)
    return peaks


def find_channel_peaks(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches
) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each channel (C,); else as `find_peaks`."""
    extended = copy_model(model)
    del extended.graph.output[:]
    axes = numpy_helper.from_array(np.asarray([0, 2, 3], np.int64), "all_but_channels")
    extended.graph.initializer.append(axes)
    for name in tensors:
        size, peak = f"magnitude_of_{name}", f"peak_of_{name}"
        extended.graph.node.append(helper.make_node("Abs", [name], [size], name=size))
        extended.graph.node.append(
            helper.make_node("ReduceMax", [size, axes.name], [peak], name=peak, keepdims=0)
        )
        extended.graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, None))
    peaks: dict[str, NDArray[np.float32]] = {}
    for number, found in enumerate(run_all(open_graph(extended), batches), start=1):
        for name in tensors:
            if not np.isfinite(found[f"peak_of_{name}"]).all():
                raise _not_finite(name, number)
            peaks[name] = np.maximum(peaks.get(name, np.float32(0)), found[f"peak_of_{name}"])
    if not peaks and tensors:
        raise DataError(_NO_IMAGE)
    return peaks


def _not_finite(name: str, number: int) -> DataError:
    return DataError(
        f"Calibration: the tensor {name} is not finite on image {number}.",
        hint="Look at that image, and at the model's weights.",
    )


def _floors(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, float]:
    """Return the value below which nothing matters, for tensors where there is one."""
    readers = consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    floors = {}
    for name in tensors:
        lowest = min(map(_floor, readers.get(name, [])), default=-np.inf)
        if name not in outputs and lowest > -np.inf:
            floors[name] = lowest
    return floors


def _floor(node: onnx.NodeProto) -> float:
    """Return the value below which the node's result is the same for all inputs, or -inf."""
    if node.op_type == "HardSwish":
        return -3.0
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    is_rising = node.op_type == "HardSigmoid" and slope > 0
    # Float32 holds a 1/6 with which it would be -2.9999999.
    return float(f"{-offset / slope:.6g}") if is_rising else -np.inf


def _count_elements(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches
) -> dict[str, int]:
    """Return how many elements each tensor has for the largest image."""
    largest = max(batches(), key=lambda batch: batch[0].size, default=None)
    if largest is None:
        raise DataError(_NO_IMAGE)
    sized = copy_model(model)
    del sized.graph.output[:]
    for name in tensors:
        sized.graph.node.append(helper.make_node("Size", [name], [f"size_of_{name}"]))
        sized.graph.output.append(
            helper.make_tensor_value_info(f"size_of_{name}", TensorProto.INT64, [])
        )
    found = run_one(open_graph(sized), largest[:1])
    return {name: int(found[f"size_of_{name}"]) for name in tensors}


def _groups(tensors: Sequence[str], elements: dict[str, int]) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        size = elements[name] * 4
        if size > room or not groups:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(name)
        room -= size
    return groups


def select_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the part of the graph that makes these float tensors, which are its outputs.

    An input among them comes out by an Identity of its own name with `_out` behind it.
    """
    part = copy_model(model)
    inputs = {value.name for value in model.graph.input}
    made, wanted = producers(part.graph), list(names)
    used: set[str] = set()
    while wanted:
        node = made.get(wanted.pop())
        if node is not None and node.name not in used:
            used.add(node.name)
            wanted += node.input
    nodes = [node for node in part.graph.node if node.name in used]
    nodes += [helper.make_node("Identity", [n], [f"{n}_out"]) for n in names if n in inputs]
    replace_nodes(part.graph, nodes)
    del part.graph.output[:]
    part.graph.output.extend(
        helper.make_tensor_value_info(
            f"{name}_out" if name in inputs else name, TensorProto.FLOAT, None
        )
        for name in names
    )
    return part


def run_all(session: Any, batches: Batches) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the outputs for each image by name, one image at a time whatever the batches hold."""
    inputs = {value.name: f"{value.name}_out" for value in session.get_inputs()}
    for batch in batches():
        for index in range(batch.shape[0]):
            found = run_one(session, batch[index : index + 1])
            for name, copied in inputs.items():
                if copied in found:
                    found[name] = found.pop(copied)
            yield found


def open_graph(model: onnx.ModelProto) -> Any:
    """Return an ONNX Runtime session whose memory stays flat over images of many sizes.

    Nothing is fused: what is, depends on which tensors leave the graph, and so would their last
    bits. Ranges of a tensor are the same whatever is observed beside it.
    """
    runtime = require_onnxruntime()
    options = session_options()
    options.enable_mem_pattern = False  # Image sizes vary; a pattern per size would be kept.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return runtime.InferenceSession(graph_bytes(model), options, providers=["CPUExecutionProvider"])


def run_one(session: Any, batch: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the outputs by name."""
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, {session.get_inputs()[0].name: batch})
    return dict(zip(names, found, strict=True))
