"""Small ONNX graphs, node by node, for tests that place int8 in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class GraphBuilder:
    """Nodes and stored tensors, in order; each call returns the name of what it added."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def store(self, name: str, values: Any, kind: type[np.generic] = np.float32) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(op, list(inputs), [output], name=f"n_{output}", **attributes)
        self.nodes.append(node)
        return output
