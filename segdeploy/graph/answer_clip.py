"""Where to clip the map that a first depthwise convolution reads: by what the network answers.

Each channel of that map goes its own way, and the normalisation folded into the depthwise weights
makes them alike again, however far apart their ranges are. The squared error of the map itself is
therefore the wrong measure: it is that of the few widest channels. The candidates are tried with
nothing else quantised, on few images; what the chosen range clips is told of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segdeploy.graph.byte_range import ByteRange
from segdeploy.graph.calibrate import Batches, open_graph, run_one
from segdeploy.graph.clipping import AnswerChoice, Histogram, TensorRange, clip_at
from segdeploy.graph.node_groups import NodeGroups
from segdeploy.graph.proto import copy_model, rename_input, replace_nodes

SHARES = (1.0, 0.85, 0.72, 0.6, 0.5, 0.42)
"""Candidates, as shares of the clip with the least squared error."""


def stem_maps(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that depthwise convolutions behind a first convolution read."""
    groups = NodeGroups(model.graph)
    found = [n.input[0] for n in model.graph.node if groups.by_node.get(n.name) == "stem_depthwise"]
    return list(dict.fromkeys(found))


def narrow_by_answer(
    model: onnx.ModelProto,
    ranges: Mapping[str, TensorRange],
    histograms: Mapping[str, Histogram],
    batches: Batches,
) -> dict[str, TensorRange]:
    """Return the ranges, each at the share of its clip that changes the outputs least.

    Args:
        model: The plain fp32 graph.
        ranges: Of tensors in it.
        histograms: Of the same tensors over all images: they say how much each range clips.
        batches: Of one image each; few are enough, and their order does not matter.
    """
    exact = open_graph(model)
    chosen = {}
    for name, found in ranges.items():
        candidates = [clip_at(histograms[name], found, share) for share in SHARES]
        sessions = [open_graph(_with_grid(model, name, each.bytes)) for each in candidates]
        errors: list[list[float]] = [[] for _ in candidates]
        for batch in batches():
            wanted = run_one(exact, batch)
            for session, told in zip(sessions, errors, strict=True):
                told.append(_distance(run_one(session, batch), wanted))
        totals = [math.fsum(told) for told in errors]  # Exact, so that no order matters.
        best = totals.index(min(totals))
        how = AnswerChoice(SHARES[best], SHARES, len(errors[best]))
        chosen[name] = replace(candidates[best], answer=how)
    return chosen


def _distance(answer: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> float:
    """Return the mean squared difference of all outputs."""
    return sum(
        float(np.mean(np.square(answer[name] - values, dtype=np.float64)))
        for name, values in wanted.items()
    )


def _with_grid(model: onnx.ModelProto, name: str, grid: ByteRange) -> onnx.ModelProto:
    """Return the graph in which all who read a tensor get it rounded to the grid."""
    changed = copy_model(model)
    graph = changed.graph
    parts = [f"{name}_on_grid_{part}" for part in ("scale", "zero", "bytes", "values")]
    scale, zero, whole, values = parts
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(grid.scale, np.float32), scale),
            numpy_helper.from_array(np.asarray(grid.zero_point, np.uint8), zero),
        ]
    )
    pair = [
        helper.make_node("QuantizeLinear", [name, scale, zero], [whole], name=whole),
        helper.make_node("DequantizeLinear", [whole, scale, zero], [values], name=values),
    ]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rename_input(node, name, values)
        nodes += [node, *(pair if name in node.output else [])]
    replace_nodes(graph, nodes)
    return changed
