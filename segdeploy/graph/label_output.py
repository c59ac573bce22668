"""The `labels` contracts as graph nodes: the decision of `core.task`, made inside the graph.

Ties go to the lowest class, as in `predict_labels`. Confidence is the probability of the predicted
label, as in `predict_confidence`. Applied after the precision passes: the decision is float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.core.task import Task, label_dtype
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import copy_model

CONTRACT = PassContract("The label output", changes_output=True)
_Nodes = list[onnx.NodeProto]


def add_label_output(
    model: onnx.ModelProto, task: Task, num_labels: int, *, confidence: bool = False
) -> onnx.ModelProto:
    """Return the graph with `labels` (uint8/uint16, N x H x W) in place of its logits.

    Args:
        model: Has one float32 output N x K x H x W.
        task: Multiclass or binary.
        num_labels: Number of class names; sets the label type.
        confidence: Also give `confidence` (float32, N x H x W).

    Raises:
        BuildError: If the graph has not exactly one such output, or the task is multilabel.
    """
    changed = copy_model(model)
    graph = changed.graph
    logits = _only_output(graph)
    if task is Task.MULTILABEL:
        raise BuildError("A multilabel prediction is not one label map; export logits.")
    batch, _, height, width = logits.type.tensor_type.shape.dim
    sizes = [d.dim_param or d.dim_value for d in (batch, height, width)]
    kind = helper.np_dtype_to_tensor_dtype(label_dtype(num_labels))
    decide, certainty = (
        (_binary_labels, _binary_confidence)
        if task is Task.BINARY
        else (_argmax_labels, _softmax_confidence)
    )
    nodes = decide(logits.name, kind)
    del graph.output[:]
    graph.value_info.append(logits)
    graph.output.append(helper.make_tensor_value_info("labels", kind, sizes))
    if confidence:
        nodes += certainty(logits.name)
        graph.output.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, sizes))
    for node in nodes:
        node.name = f"output_{node.output[0]}"
    graph.initializer.extend(_constants(nodes))
    graph.node.extend(nodes)
    return CONTRACT.check_after(model, changed)


def _only_output(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    if len(graph.output) == 1:
        kind = graph.output[0].type.tensor_type
        if kind.elem_type == TensorProto.FLOAT and len(kind.shape.dim) == 4:
            found = onnx.ValueInfoProto()
            found.CopyFrom(graph.output[0])
            return found
    raise BuildError(
        "A label output needs a graph with one float32 output N x K x H x W, "
        f"found {[value.name for value in graph.output]}."
    )


_AXIS, _ZERO = "output_class_axis", "output_zero"


def _constants(nodes: _Nodes) -> list[onnx.TensorProto]:
    used = {name for node in nodes for name in node.input}
    known = {_AXIS: np.asarray([1], np.int64), _ZERO: np.float32(0)}
    return [numpy_helper.from_array(np.asarray(v), n) for n, v in known.items() if n in used]


def _argmax_labels(logits: str, kind: int) -> _Nodes:
    return [
        helper.make_node(
            "ArgMax", [logits], ["label_index"], axis=1, keepdims=0, select_last_index=0
        ),
        helper.make_node("Cast", ["label_index"], ["labels"], to=kind),
    ]


def _binary_labels(logits: str, kind: int) -> _Nodes:
    return [
        helper.make_node("Squeeze", [logits, _AXIS], ["foreground"]),
        helper.make_node("Greater", ["foreground", _ZERO], ["is_foreground"]),
        helper.make_node("Cast", ["is_foreground"], ["labels"], to=kind),
    ]


def _softmax_confidence(logits: str) -> _Nodes:
    return [
        helper.make_node("ReduceMax", [logits, _AXIS], ["top_logit"], keepdims=1),
        helper.make_node("Sub", [logits, "top_logit"], ["below_top"]),
        helper.make_node("Exp", ["below_top"], ["relative_odds"]),
        helper.make_node("ReduceSum", ["relative_odds", _AXIS], ["sum_of_odds"], keepdims=0),
        helper.make_node("Reciprocal", ["sum_of_odds"], ["confidence"]),
    ]


def _binary_confidence(logits: str) -> _Nodes:
    return [
        helper.make_node("Abs", [logits], ["binary_margin"]),
        helper.make_node("Sigmoid", ["binary_margin"], ["foreground_odds"]),
        helper.make_node("Squeeze", ["foreground_odds", _AXIS], ["confidence"]),
    ]
