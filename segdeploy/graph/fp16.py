"""Cast a float32 graph to float16 inside, with float32 inputs and outputs.

Only what depends on pixels is cast. Arithmetic on shapes (Shape -> ... -> Resize sizes) stays as
it is, since float16 cannot count beyond 2048; so do the float32-only slots of an operator (scales
of Resize, statistics of BatchNormalization). TensorRT builds such a graph strongly typed; ONNX
Runtime's CPU provider runs it too, but slower than float32.

Q/DQ nodes are cast as well: their scales become float16 (opset 19 is the first that allows it), so
that nothing around the int8 operators is left in float32. `float32_nodes` tells what is: in a graph
that was cast, only the casts at its ends and the islands: those that `FP32_SLOTS` and shapes make,
and the nodes that the caller names (`graph.overflow` finds them), with casts at their borders.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.proto import (
    copy_model,
    element_types,
    initializers,
    replace_initializers,
    replace_nodes,
    to_array,
)

FP16_MAX = 65504.0
FP32_SLOTS = {"Resize": {1, 2}, "BatchNormalization": {1, 2, 3, 4}}
"""Inputs that an operator takes in float32 whatever its data: the islands, besides shapes."""
_SHAPE_READERS = {"Shape", "Size"}
_QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}
_FP16_SCALES = 19  # The first opset whose Q/DQ take float16.

CONTRACT = PassContract("The fp16 cast", frozenset({Need.FLAT}), opset=_FP16_SCALES)


def cast_to_fp16(model: onnx.ModelProto, islands: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph with float16 weights and activations; inputs and outputs keep their types.

    Args:
        model: A float32 graph, plain or with Q/DQ nodes.
        islands: Names of the nodes that stay in float32.

    Raises:
        BuildError: If a weight exceeds the float16 range, or the graph has control flow.
    """
    CONTRACT.check_before(model)
    cast = copy_model(model)
    if any(node.op_type in _QUANTIZERS for node in cast.graph.node):
        _raise_opset(cast, _FP16_SCALES)
    _Fp16Cast(cast, islands).apply()
    del cast.graph.value_info[:]
    return CONTRACT.check_after(model, cast)


def float32_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that compute in float32: whose results are, casts from half left out."""
    types = element_types(model)
    return [
        node
        for node in model.graph.node
        if any(types.get(name) == TensorProto.FLOAT for name in node.output)
        and not (node.op_type == "Cast" and types[node.input[0]] == TensorProto.FLOAT16)
    ]


def _raise_opset(model: onnx.ModelProto, version: int) -> None:
    """Declare at least this opset, in place; from 18 to 19 no operator changed what it computes."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, version)


class _Fp16Cast:
    """State of one cast: which tensors are half already, and copies made once."""

    def __init__(self, model: onnx.ModelProto, islands: Collection[str]) -> None:
        self.graph = model.graph
        self.islands = frozenset(islands)
        self.types = element_types(model)
        self.stored = initializers(model.graph)
        self.half: dict[str, str] = {}  # float32 name -> name of its float16 form
        self.full: dict[str, str] = {}  # name of what an island reads or makes -> its float32 form
        self.nodes: list[onnx.NodeProto] = []
        self.outputs = {value.name for value in model.graph.output}

    def apply(self) -> None:
        for value in self.graph.input:
            if self.types[value.name] == TensorProto.FLOAT and value.name not in self.stored:
                self._cast(value.name)
        for node in self.graph.node:
            self._visit(node)
        if self.islands:
            self._drop_unread_casts()
        replace_nodes(self.graph, self.nodes)
        replace_initializers(self.graph, self.stored.values())

    def _drop_unread_casts(self) -> None:
        """An input that only islands read needs no half."""
        read = self.outputs.union(*(node.input for node in self.nodes))
        self.nodes = [n for n in self.nodes if n.op_type != "Cast" or n.output[0] in read]

    def _visit(self, node: onnx.NodeProto) -> None:
        depends = node.op_type == "DequantizeLinear" or (
            node.op_type not in _SHAPE_READERS and any(self._is_pixels(name) for name in node.input)
        )
        if not depends:
            self.nodes.append(node)
            return
        if node.name in self.islands:
            self._keep(node)
            return
        fixed = FP32_SLOTS.get(node.op_type, set())
        for index, name in enumerate(node.input):
            if name and index not in fixed and self.types[name] == TensorProto.FLOAT:
                node.input[index] = self._as_half(name)
        if node.op_type == "Cast":
            _retarget(node)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if name and self.types[name] == TensorProto.FLOAT:
                self._half_output(node, index, name)

    def _is_pixels(self, name: str) -> bool:
        return (name in self.half or name in self.full) and name not in self.stored

    def _keep(self, node: onnx.NodeProto) -> None:
        """Leave a node in float32: what was made in half is cast back for it."""
        for index, name in enumerate(node.input):
            if name in self.half and self.half[name] == name:
                node.input[index] = self._as_full(name)
        self.nodes.append(node)
        self.full.update((n, n) for n in node.output if self.types.get(n) == TensorProto.FLOAT)

    def _as_full(self, name: str) -> str:
        if name not in self.full:
            self.full[name] = f"{name}_fp32"
            self.nodes.append(_cast_node(name, self.full[name], TensorProto.FLOAT))
        return self.full[name]

    def _half_output(self, node: onnx.NodeProto, index: int, name: str) -> None:
        if name not in self.outputs:
            self.half[name] = name
            return
        half = f"{name}_fp16"
        node.output[index] = half
        self.half[name] = half
        self.nodes.append(_cast_node(half, name, TensorProto.FLOAT))

    def _as_half(self, name: str) -> str:
        if name not in self.half:
            if name in self.stored:
                self._store_half(name)
            else:
                self._cast(name)
        return self.half[name]

    def _cast(self, name: str) -> None:
        self.half[name] = f"{name}_fp16"
        self.nodes.append(_cast_node(name, self.half[name], TensorProto.FLOAT16))

    def _store_half(self, name: str) -> None:
        values = to_array(self.stored[name])
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        if largest > FP16_MAX:  # An infinite bound of a Clip is infinite in float16, too.
            raise BuildError(
                f"The weight {name} reaches {largest:.3g}, beyond the fp16 range of {FP16_MAX:g}.",
                hint="Let its node be an island, or export fp32 instead.",
            )
        self.half[name] = f"{name}_fp16"
        tensor = numpy_helper.from_array(values.astype(np.float16), self.half[name])
        self.stored[self.half[name]] = tensor


def _cast_node(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=kind)


def _retarget(node: onnx.NodeProto) -> None:
    """Let a Cast to float32 go to float16."""
    for found in node.attribute:
        if found.name == "to" and found.i == TensorProto.FLOAT:
            found.i = TensorProto.FLOAT16
