"""Where the logits of a foreign graph are: before the softmax, sigmoid or argmax at its end.

Everything here works on logits: margins, tolerances, confidence and the `labels` contract need
them, and a softmax at the end costs time and changes no decision. So a final activation is left
out, whatever only moves or casts values behind it included.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from segdeploy.graph.proto import attribute, producers

DECISIONS = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax"}
_MOVES = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten"}


@dataclass(frozen=True)
class Tail:
    """The tensor with the logits, operators left out behind it (last first), and its class axis.

    `axis` is None where the operator does not say (no cut, or a sigmoid).
    """

    tensor: str
    cut: tuple[str, ...] = ()
    axis: int | None = None


def find_tail(model: onnx.ModelProto, output: str) -> Tail:
    """Return where the logits behind `output` are: at it, if no activation ends the graph."""
    made = producers(model.graph)
    passed: list[str] = []
    found = Tail(output)
    name = output
    while (node := made.get(name)) is not None and node.op_type in DECISIONS | _MOVES:
        passed.append(node.op_type)
        name = node.input[0]
        if node.op_type in DECISIONS:
            found = Tail(name, tuple(passed), _axis(node))
    return found


def _axis(node: onnx.NodeProto) -> int | None:
    """Return the class axis (1 or 3) of a decision over N x K x H x W, or over N x H x W x K."""
    if node.op_type == "Sigmoid":
        return None
    axis = attribute(node, "axis")
    if axis is None:
        return None
    return {1: 1, -3: 1, 3: 3, -1: 3}.get(int(axis))
