"""Ranges for int8 from images, in two streaming passes: memory does not grow with their number.

Pass 1 finds the largest magnitude of every tensor inside the graph (only scalars leave it). Pass 2
counts |x| in fixed bins. Counts are integers and images run one at a time, so the result depends
neither on the order of the images nor on how a caller groups them; images may differ in size.

The clip of a tensor minimises the expected squared error of symmetric 8-bit rounding over its
histogram. What an activation maps to a constant anyway is not protected: below -3 HardSwish is
zero, so a tensor that only HardSwish reads counts from -3 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from segdeploy.core.errors import DataError
from segdeploy.frameworks.onnxruntime import require_onnxruntime, session_options
from segdeploy.graph.proto import consumers, copy_model, graph_bytes

NUM_BINS = 2048
NUM_CLIPS = 200
LEVELS = 127
GROUP_BYTES = 2**28  # What one run of pass 2 may bring out of the graph at once.
_FLOORS = {"HardSwish": -3.0, "HardSigmoid": -3.0}  # HardSigmoid of torch: alpha 1/6, beta 1/2.

Batches = Callable[[], Iterable[NDArray[np.float32]]]


@dataclass(frozen=True)
class TensorRange:
    """Of one tensor: largest magnitude seen, chosen clip (both >= 0), share of values beyond it."""

    abs_max: float
    clip: float
    clipped_share: float

    @property
    def scale(self) -> float:
        """Step of the symmetric int8 grid; 1 for a tensor that is always zero."""
        step = float(np.float32(self.clip / LEVELS))
        return step if step > 0 else 1.0


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches
) -> dict[str, TensorRange]:
    """Return the range of each tensor.

    Args:
        model: The plain fp32 graph, one input.
        tensors: Names of float32 tensors in it.
        batches: Gives the same float32 NCHW batches each time it is called.

    Raises:
        DataError: If there is no batch, or an activation is not finite.
    """
    floors = _floors(model, tensors)
    limits, elements = _find_limits(model, tensors, batches, floors)
    histograms: dict[str, NDArray[np.int64]] = {}
    for group in _groups(tensors, elements):
        histograms |= _count(model, group, batches, floors, limits)
    return {name: choose_clip(histograms[name], limits[name]) for name in tensors}


def _floors(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, float]:
    """Return the value below which nothing matters, for tensors where there is one."""
    readers = consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    floors = {}
    for name in tensors:
        kinds = {node.op_type for node in readers.get(name, [])}
        if name not in outputs and len(kinds) == 1 and kinds <= set(_FLOORS):
            floors[name] = _FLOORS[kinds.pop()]
    return floors


def _find_limits(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Batches,
    floors: dict[str, float],
) -> tuple[dict[str, float], dict[str, int]]:
    """Return (largest magnitude, most elements in one batch) of each tensor."""
    extended = copy_model(model)
    del extended.graph.output[:]
    for name in tensors:
        for operator in ("ReduceMin", "ReduceMax", "Size"):
            result = f"{operator}_of_{name}"
            node = helper.make_node(operator, [name], [result])
            if operator != "Size":
                node.attribute.append(helper.make_attribute("keepdims", 0))
            extended.graph.node.append(node)
            kind = TensorProto.INT64 if operator == "Size" else TensorProto.FLOAT
            extended.graph.output.append(helper.make_tensor_value_info(result, kind, []))
    limits = dict.fromkeys(tensors, 0.0)
    elements = dict.fromkeys(tensors, 0)
    num_batches = 0
    session = _open(extended)
    for num_batches, batch in enumerate(batches(), start=1):  # noqa: B007
        found = iter(_run(session, batch))
        for name in tensors:
            low, high, size = (float(next(found)) for _ in range(3))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(f"Calibration: the tensor {name} is not finite on some image.")
            floor = floors.get(name, low)
            limits[name] = max(limits[name], abs(max(low, floor)), abs(max(high, floor)))
            elements[name] = max(elements[name], int(size))
    if not num_batches:
        raise DataError("Calibration needs at least one image.")
    return limits, elements


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


def _count(
    model: onnx.ModelProto,
    group: Sequence[str],
    batches: Batches,
    floors: dict[str, float],
    limits: dict[str, float],
) -> dict[str, NDArray[np.int64]]:
    """Return histograms of |x| over [0, limit]; entry 0 counts exact zeros, then NUM_BINS bins."""
    extended = copy_model(model)
    del extended.graph.output[:]
    inputs = {value.name for value in model.graph.input}
    extended.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in group
        if name not in inputs
    )
    if not extended.graph.output:
        extended.graph.output.extend(model.graph.output)
    session = _open(extended)
    names = [value.name for value in extended.graph.output]
    counts = {name: np.zeros(NUM_BINS + 1, np.int64) for name in group}
    for batch in batches():
        found = dict(zip(names, _run(session, batch), strict=True))
        for name in group:
            values = batch if name in inputs else found.pop(name)
            counts[name] += histogram(values, limits[name], floors.get(name))
    return counts


def histogram(
    values: NDArray[np.float32], limit: float, floor: float | None = None
) -> NDArray[np.int64]:
    """Return NUM_BINS + 1 counts of |values|: exact zeros, then equal bins over [0, limit]."""
    flat = np.abs(np.maximum(values, floor) if floor is not None else values).ravel()
    zeros = flat.size - np.count_nonzero(flat)
    if limit <= 0:
        counts = np.zeros(NUM_BINS + 1, np.int64)
    else:
        index = np.minimum(flat * np.float32(NUM_BINS / limit), NUM_BINS - 1).astype(np.int32)
        counts = np.concatenate(([0], np.bincount(index, minlength=NUM_BINS)))
        counts[1] -= zeros
    counts[0] = zeros
    return counts


def choose_clip(counts: NDArray[np.int64], limit: float) -> TensorRange:
    """Return the clip in (0, limit] with the least expected squared error of 8-bit rounding.

    Inside the clip c the step is c / 127 and its error step^2 / 12 (x^2 for values that round to
    zero); outside, the error is (x - c)^2. Exact zeros have none.
    """
    total = int(counts.sum())
    if limit <= 0 or total == counts[0]:
        return TensorRange(0.0, 0.0, 0.0)
    centre = (np.arange(NUM_BINS) + 0.5) * (limit / NUM_BINS)
    clips = limit * np.arange(1, NUM_CLIPS + 1) / NUM_CLIPS
    weight = counts[1:].astype(np.float64)
    errors = [float(np.dot(weight, _squared_error(centre, float(c)))) for c in clips]
    best = int(np.argmin(errors))
    clip = float(clips[best])
    beyond = int(counts[1:][centre > clip].sum())
    return TensorRange(float(limit), clip, beyond / total)


def _squared_error(centre: NDArray[np.floating], clip: float) -> NDArray[np.floating]:
    step = clip / LEVELS
    inside = np.minimum(centre**2, step**2 / 12)
    return np.where(centre > clip, (centre - clip) ** 2, inside)


def _open(model: onnx.ModelProto) -> Any:
    runtime = require_onnxruntime()
    options = session_options()
    options.enable_mem_pattern = False  # Image sizes vary; a pattern per size would be kept.
    return runtime.InferenceSession(graph_bytes(model), options, providers=["CPUExecutionProvider"])


def _run(session: Any, batch: NDArray[np.float32]) -> list[Any]:
    found: list[Any] = session.run(None, {session.get_inputs()[0].name: batch})
    return found
