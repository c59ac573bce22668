"""HardSwish and SiLU on bytes, for ONNX Runtime's CPU kernels.

Of DequantizeLinear -> HardSwish -> QuantizeLinear ONNX Runtime fuses nothing: it writes the map as
float32, walks over it twice more and reads it back, which costs what the convolutions around it
gain (LRASPP: 21 of 44 ms). Both activations are x * g(x) with a gate g in [0, 1], so they are two
of ONNX Runtime's own byte kernels, a table and a product:

* HardSwish: g(x) = clip(x / 6 + 1/2, 0, 1). On a grid of step 6 / 255 whose zero lies at 128, the
  two ends of a byte are the two ends of the clip, so a change of scale is the whole gate. (That
  table is QLinearLeakyRelu with slope 1.) The gate is off by at most one of its steps, the product
  by |x| / 255, for |x| < 3, and exact beyond.
* SiLU: g is the sigmoid, of which there is a table (QLinearSigmoid).

Applied when a session opens; the file on disk is not changed, and `verify` judges what then runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.graph.proto import (
    consumers,
    copy_model,
    initializers,
    producers,
    replace_initializers,
    replace_nodes,
    to_array,
)

_DOMAIN = "com.microsoft"
_STEP, _SCALE = "gate_step", "gate_scale"  # 6/255: a grid of x. 1/255: a grid of [0, 1].
_MIDDLE, _LOW = "gate_middle", "gate_low"  # Where x = 0 and where the gate 0 lies in a byte.
_MIDDLES: dict[int, tuple[type[np.integer[Any]], int, int]] = {
    TensorProto.UINT8: (np.uint8, 128, 0),
    TensorProto.INT8: (np.int8, 0, -128),
}


def use_integer_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with HardSwish and SiLU between Q/DQ as operators on bytes.

    Left alone: an activation whose input or output is not quantised per tensor, or whose float
    output is read by anything but one QuantizeLinear.
    """
    changed = copy_model(model)
    _Rewrite(changed).apply()
    return changed


class _Rewrite:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.made = producers(self.graph)
        self.readers = consumers(self.graph)
        self.stored = initializers(self.graph)
        self.outputs = {value.name for value in self.graph.output}
        self.added: dict[str, onnx.TensorProto] = {}

    def apply(self) -> None:
        instead: dict[str, list[onnx.NodeProto]] = {}
        gone: set[str] = set()
        for node in self.graph.node:
            found = self._activation(node)
            if found is None:
                continue
            dequantize, quantize, operator = found
            instead[quantize.output[0]] = self._byte_nodes(dequantize, quantize, operator)
            gone.update({node.output[0], *(n for n in node.input if n != dequantize.output[0])})
        if not instead:
            return
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if not gone.intersection(node.output):
                nodes += instead.get(node.output[0], [node])
        replace_nodes(self.graph, self._alive(nodes))
        replace_initializers(self.graph, [*self.stored.values(), *self.added.values()])
        if all(known.domain != _DOMAIN for known in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))

    def _activation(
        self, node: onnx.NodeProto
    ) -> tuple[onnx.NodeProto, onnx.NodeProto, str] | None:
        """Return (DQ before, Q behind, operator of the gate) of a quantised activation."""
        if node.op_type == "HardSwish":
            source, operator = node.input[0], "QLinearLeakyRelu"
        elif node.op_type == "Mul" and (found := self._silu_input(node)):
            source, operator = found, "QLinearSigmoid"
        else:
            return None
        dequantize, following = self.made.get(source), self.readers.get(node.output[0], [])
        if dequantize is None or len(following) != 1 or node.output[0] in self.outputs:
            return None
        before = self._grid_type(dequantize, "DequantizeLinear")
        if before is None or before != self._grid_type(following[0], "QuantizeLinear"):
            return None
        return dequantize, following[0], operator

    def _silu_input(self, node: onnx.NodeProto) -> str | None:
        """Return x of Mul(x, Sigmoid(x)), if nothing else reads the sigmoid."""
        for value, gate in ((0, 1), (1, 0)):
            made = self.made.get(node.input[gate])
            is_silu = (
                made is not None
                and made.op_type == "Sigmoid"
                and made.input[0] == node.input[value]
                and len(self.readers[made.output[0]]) == 1
                and made.output[0] not in self.outputs
            )
            if is_silu:
                return str(node.input[value])
        return None

    def _grid_type(self, node: onnx.NodeProto, operator: str) -> int | None:
        """Return the byte type of a Q or DQ with one scale and a stored zero point."""
        if node.op_type != operator or len(node.input) < 3:
            return None
        scale, zero = (self.stored.get(name) for name in node.input[1:3])
        if scale is None or zero is None or scale.data_type != TensorProto.FLOAT:
            return None
        is_one = to_array(scale).size == 1
        return zero.data_type if is_one and zero.data_type in _MIDDLES else None

    def _byte_nodes(
        self, dequantize: onnx.NodeProto, quantize: onnx.NodeProto, operator: str
    ) -> list[onnx.NodeProto]:
        kind = self.stored[quantize.input[2]].data_type
        dtype, middle, low = _MIDDLES[kind]
        suffix = np.dtype(dtype).name
        middle_name = self._constant(f"{_MIDDLE}_{suffix}", dtype(middle))
        low_name = self._constant(f"{_LOW}_{suffix}", dtype(low))
        scale = self._constant(_SCALE, np.float32(1 / 255))
        is_linear = operator == "QLinearLeakyRelu"
        grid = [self._constant(_STEP, np.float32(6 / 255)), middle_name]
        result, source = quantize.output[0], list(dequantize.input[:3])
        gate = helper.make_node(
            operator, [*source, *(grid if is_linear else [scale, low_name])], [f"{result}_gate"],
            name=f"{result}_gate", domain=_DOMAIN,
        )  # fmt: skip
        if is_linear:
            gate.attribute.append(helper.make_attribute("alpha", 1.0))
        product = helper.make_node(
            "QLinearMul", [*source, gate.output[0], scale, low_name, *quantize.input[1:3]],
            [result], name=f"{result}_product", domain=_DOMAIN,
        )  # fmt: skip
        return [gate, product]

    def _constant(self, name: str, value: np.generic) -> str:
        self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _alive(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return the nodes without those whose results nobody reads any more."""
        while True:
            used = {name for node in nodes for name in node.input} | self.outputs
            kept = [node for node in nodes if used.intersection(node.output)]
            if len(kept) == len(nodes):
                return kept
            nodes = kept
