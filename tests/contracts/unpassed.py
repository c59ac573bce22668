"""What graphs of real models look like before a pass has been over them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segdeploy.graph.proto import attribute, copy_model

NUM_CLASSES = 5
SIZE = (48, 64)


def with_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put an Identity before every convolution's input and its weight: something to fold."""
    changed = copy_model(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if node.op_type == "Conv":
            for index in (0, 1):
                name = f"{node.name}_same_{index}"
                nodes.append(helper.make_node("Identity", [node.input[index]], [name], name=name))
                copied.input[index] = name
        nodes.append(copied)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def with_batch_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a BatchNormalization, the identity but for rounding, behind every convolution."""
    changed = copy_model(model)
    widths = {t.name: t.dims[0] for t in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    rng = np.random.default_rng(0)
    for node in model.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        nodes.append(copied)
        if node.op_type != "Conv":
            continue
        result, width = node.output[0], widths[node.input[1]]
        copied.output[0] = f"{result}_raw"
        variance = rng.uniform(0.5, 2, width)
        mean = rng.normal(size=width)
        gamma = np.sqrt(variance + 1e-5)
        values = {"gamma": gamma, "beta": mean, "mean": mean, "variance": variance}
        names = [f"{result}_{name}" for name in values]
        changed.graph.initializer.extend(
            numpy_helper.from_array(each.astype(np.float32), name)
            for name, each in zip(names, values.values(), strict=True)
        )
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"{result}_raw", *names], [result], name=f"{result}_norm"
            )
        )
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def _with_raw_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which what gave the logits gives `raw`: for nodes to come behind it."""
    changed = copy_model(model)
    for node in changed.graph.node:
        for part in (node.input, node.output):
            part[:] = ["raw" if name == "logits" else name for name in part]
    return changed


def with_means(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a global mean, as torch.onnx writes it, behind the logits: each less its own mean."""
    changed = _with_raw_logits(model)
    graph = changed.graph
    graph.initializer.append(numpy_helper.from_array(np.asarray([-1, -2]), "both_sides"))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["raw", "both_sides"], ["last_mean"], name="last_mean"),
            helper.make_node("Sub", ["raw", "last_mean"], ["logits"], name="less_mean"),
        ]
    )
    return changed


def with_late_classifier(model: onnx.ModelProto) -> onnx.ModelProto:
    """Double the logits' size, and mix them into fewer classes behind that."""
    changed = _with_raw_logits(model)
    graph = changed.graph
    rng = np.random.default_rng(2)
    values = {
        "mix": rng.normal(size=(3, NUM_CLASSES, 1, 1)).astype(np.float32),
        "mix_bias": rng.normal(size=3).astype(np.float32),
        "double": np.asarray([1, 1, 2, 2], np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in values.items())
    graph.node.extend(
        [
            helper.make_node("Resize", ["raw", "", "double"], ["wide"], name="wide", mode="linear"),
            helper.make_node("Conv", ["wide", "mix", "mix_bias"], ["logits"], name="mix"),
        ]
    )
    sides = [None, 3, *(2 * side for side in SIZE)]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, sides))
    return changed


def older(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph as opset 17 would write it: ReduceMean takes its axes as an attribute."""
    changed = copy_model(model)
    stored = {t.name: t for t in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type in {"ReduceMean", "ReduceMax"} and len(node.input) > 1:
            axes = numpy_helper.to_array(stored[node.input.pop()]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
        for name in (
            "antialias",
            "keep_aspect_ratio_policy",
            "noop_with_empty_axes",
            "num_outputs",
        ):
            if attribute(node, name) is not None:
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend(kept)
    used = {name for node in changed.graph.node for name in node.input}
    kept_tensors = [t for t in changed.graph.initializer if t.name in used]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept_tensors)
    changed.opset_import[0].version = 17
    return changed
