"""Where the logits of a foreign graph are: before the softmax, sigmoid or argmax at its end.

Everything here works on logits: margins, tolerances, confidence and the `labels` contract need
them, and a softmax at the end costs time and changes no decision. So a final activation is left
out, whatever only moves or casts values behind it included, and a transpose in front of it: up to
opset 12 PyTorch swaps classes and columns around a softmax, whose input has rows and columns
exchanged then.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from segdeploy.graph.proto import attribute, opset_version, producers

DECISIONS = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax"}
_MOVES = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten"}
_SHARES = {"Softmax", "Sigmoid", "HardSigmoid"}
_KEEPS_SHARES = _MOVES | {"Resize", "Upsample", "Clip", "Abs", "Slice"}
_SOFTMAX_OVER_LAST = 13  # The first opset whose softmax is over the last axis if it does not say.


@dataclass(frozen=True)
class Tail:
    """The tensor with the logits, operators left out behind it (last first), and its class axis.

    `axis` (0..3) is None where the operator has none (no cut, or a sigmoid).
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
            found = _before_transposes(made, Tail(name, tuple(passed), _axis(model, node)))
    return found


def holds_shares(model: onnx.ModelProto, tensor: str) -> bool:
    """Return whether a tensor comes from a sigmoid or softmax, resized or clipped at most."""
    made = producers(model.graph)
    node = made.get(tensor)
    while node is not None and node.op_type in _KEEPS_SHARES:
        node = made.get(node.input[0])
    return node is not None and node.op_type in _SHARES


def _axis(model: onnx.ModelProto, node: onnx.NodeProto) -> int | None:
    """Return the axis that a decision is made over."""
    if node.op_type == "Sigmoid":
        return None
    softmax = -1 if opset_version(model) >= _SOFTMAX_OVER_LAST else 1
    return int(attribute(node, "axis", 0 if node.op_type == "ArgMax" else softmax))


def _before_transposes(made: dict[str, onnx.NodeProto], tail: Tail) -> Tail:
    """Return the same classes as they were before their axes were moved."""
    tensor, axis = tail.tensor, tail.axis
    while axis is not None and (node := made.get(tensor)) is not None:
        perm = attribute(node, "perm") if node.op_type == "Transpose" else None
        if perm is None or not -len(perm) <= axis < len(perm):
            break
        tensor, axis = node.input[0], int(perm[axis])
    return Tail(tensor, tail.cut, None if axis is None else axis % 4)
