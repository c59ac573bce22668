"""What rules ask about a graph: types, shapes, who makes a tensor, and where in the model it is.

The export strips the exporter's metadata, so a node's module path comes from what is left: the
weights' names (`module.backbone.0.0.weight`). A node without weights takes the path of the nearest
node before it that has some; foreign graphs that kept the exporter's scopes are read exactly.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper

from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    initializers,
    producers,
    to_array,
)

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTS = {"weight", "bias", "running_mean", "running_var", "weight_bias"}
_WRAPPER = "module."
_SHAPE_READERS = {"Shape", "Size"}
_SMALL = 2**18  # Numbers of a tensor: at most 1 MiB of float32.


class Level(StrEnum):
    """`error`: the runtime refuses the graph. `warning`: it takes it, but not as one may think."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that a runtime refuses or treats in its own way; `cure` is what to do."""

    rule: str
    level: Level
    message: str
    cure: str
    node: str = ""
    op: str = ""
    module: str = ""


class GraphFacts:
    """Answers about one model; `folder` is where external data would lie."""

    def __init__(
        self, model: onnx.ModelProto, *, has_sizes: bool = False, folder: Path | None = None
    ) -> None:
        self.model = _with_small_data(with_open_sizes(model), folder)
        self.graph = self.model.graph
        self.has_sizes = has_sizes
        self.folder = folder
        self.stored = initializers(self.graph)
        self.stored |= {
            name: _constant_value(node)
            for node in self.graph.node
            if node.op_type == "Constant"
            for name in node.output[:1]
        }
        self.made = producers(self.graph)
        self.readers = consumers(self.graph)
        self.inputs = [v for v in self.graph.input if v.name not in self.stored]
        self.outputs = {v.name for v in self.graph.output}

    @cached_property
    def problem(self) -> str:
        """What ONNX's own type and shape inference says against the graph; usually nothing."""
        try:
            onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        except Exception as error:  # noqa: BLE001  it raises several foreign kinds
            return str(error).strip()
        return ""

    @cached_property
    def _values(self) -> Mapping[str, onnx.TypeProto.Tensor]:
        try:
            graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        except Exception:  # noqa: BLE001  `problem` tells it
            graph = self.graph
        known = [*graph.value_info, *graph.input, *graph.output]
        return {value.name: value.type.tensor_type for value in known}

    def type_of(self, name: str) -> int:
        """Return a tensor's element type (TensorProto.DataType); 0 if it is not known."""
        if name in self.stored:
            return self.stored[name].data_type
        return self._values[name].elem_type if name in self._values else 0

    def shape_of(self, name: str) -> tuple[int | None, ...] | None:
        """Return a tensor's shape, None for a size that is not fixed; None if nothing is known."""
        if name in self.stored:
            return tuple(self.stored[name].dims)
        found = self._values.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in found.shape.dim)

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a stored tensor's values; None if it is computed, absent, or large and outside."""
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return to_array(tensor) if tensor.data_type else None  # 0: a Constant of text or sparse.

    def weight(self, name: str) -> NDArray[Any] | None:
        """Return what `constant` does, and large tensors of another file too, read anew."""
        tensor = self.stored.get(name)
        if tensor is not None and self.folder and _is_beside(tensor, self.folder):
            return to_array(_read_in(tensor, self.folder))
        return self.constant(name)

    @cached_property
    def from_values(self) -> frozenset[str]:
        """Tensors that depend on what the inputs hold, not only on their shapes."""
        found = {value.name for value in self.inputs}
        for node in self.graph.node:
            if node.op_type not in _SHAPE_READERS and found.intersection(node.input):
                found.update(node.output)
        return frozenset(found)

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield every node, those of nested graphs too."""
        yield from _walk(self.graph)
        for function in self.model.functions:
            yield from function.node

    def calls_function(self, node: onnx.NodeProto) -> bool:
        """Return whether a node is a call of a function that the model itself defines."""
        return any(f.name == node.op_type and f.domain == node.domain for f in self.model.functions)

    def finding(
        self,
        rule: str,
        message: str,
        cure: str,
        node: onnx.NodeProto | None = None,
        level: Level = Level.ERROR,
    ) -> Finding:
        """Return a finding, with the node's name, operator and module path."""
        if node is None:
            return Finding(rule, level, message, cure)
        name = node.name or next(iter(node.output), "")
        return Finding(rule, level, message, cure, name, node.op_type, self.module_of(node))

    def module_of(self, node: onnx.NodeProto) -> str:
        """Return the module path of a node, or "" where nothing tells it."""
        exact = _scope(node)
        if exact:
            return exact
        seen, front = set[str](), [node]
        while front:
            for each in front:
                path = self._own_path(each)
                if path:
                    return path
            names = [n for each in front for n in each.input if n in self.made and n not in seen]
            seen.update(names)
            front = [self.made[n] for n in dict.fromkeys(names)]
        return ""

    def _own_path(self, node: onnx.NodeProto) -> str:
        """Return the path that a node's weights have, also through DequantizeLinear or Cast."""
        names = list(node.input)
        for name in node.input:
            maker = self.made.get(name)
            if maker is not None and maker.op_type in {"DequantizeLinear", "Cast"}:
                names += [n for n in maker.input if n in self.stored]
        return next((path for name in names if (path := _weight_path(name, self.stored))), "")


def _walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for found in node.attribute:
            for inner in ([found.g] if found.HasField("g") else []) + list(found.graphs):
                yield from _walk(inner)


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto:
    """Return the tensor of a Constant node, which may give its numbers as an attribute."""
    for found in node.attribute:
        if found.name == "value":
            tensor: onnx.TensorProto = found.t
            return tensor
        if found.name in {"value_int", "value_ints", "value_float", "value_floats"}:
            kind = np.int64 if "int" in found.name else np.float32
            numbers = np.asarray(attribute(node, found.name), kind)
            stored: onnx.TensorProto = numpy_helper.from_array(numbers)
            return stored
    return onnx.TensorProto()


def _scope(node: onnx.NodeProto) -> str:
    text = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    try:
        scopes = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _weight_path(name: str, stored: Iterable[str]) -> str:
    if name not in stored or "." not in name:
        return ""
    parts = name.removeprefix(_WRAPPER).split(".")
    for index, part in enumerate(parts):
        if any(part == w or part.startswith(f"{w}_") for w in _WEIGHTS):
            return ".".join(parts[:index])
    return ""


def with_open_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with no size where some exporters write -1; inference reckons with that."""
    if not _written_open(model.graph):
        return model
    opened = copy_model(model)
    for dim in _written_open(opened.graph):
        dim.ClearField("dim_value")
    return opened


def _written_open(graph: onnx.GraphProto) -> list[onnx.TensorShapeProto.Dimension]:
    values = [*graph.input, *graph.output, *graph.value_info]
    return [d for v in values for d in v.type.tensor_type.shape.dim if d.dim_value < 0]


def external_file(tensor: onnx.TensorProto) -> str:
    """Return the name of the file that holds a tensor's values; "" if none is named."""
    return next((str(e.value) for e in tensor.external_data if e.key == "location"), "")


def _is_beside(tensor: onnx.TensorProto, folder: Path) -> bool:
    is_outside = tensor.data_location == TensorProto.EXTERNAL and external_file(tensor) != ""
    return is_outside and (folder / external_file(tensor)).is_file()


def _read_in(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Return a tensor of another file with its values; onnx itself would follow no links."""
    place = external_data_helper.ExternalDataInfo(tensor)
    with (folder / place.location).open("rb") as file:
        file.seek(place.offset or 0)
        content = file.read(-1 if place.length is None else place.length)
    return onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content
    )


def _with_small_data(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """Return the graph with small tensors of other files in it: scales, zero points, shapes."""
    if folder is None or not any(_is_beside(t, folder) for t in _stored_tensors(model.graph)):
        return model
    whole = copy_model(model)
    for tensor in _stored_tensors(whole.graph):
        if _is_beside(tensor, folder) and math.prod(tensor.dims) <= _SMALL:
            tensor.CopyFrom(_read_in(tensor, folder))
    return whole


def _stored_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    constants = [a.t for n in graph.node for a in n.attribute if a.name == "value"]
    return [*graph.initializer, *constants]


def type_name(kind: int) -> str:
    """Return the name of an element type, as a person writes it."""
    return str(TensorProto.DataType.Name(kind)).lower() if kind else "unknown"


def is_finite(values: NDArray[Any]) -> bool:
    """Return whether no value is NaN or infinite; integers never are, and a bound may be inf."""
    if values.dtype.kind not in "fc":
        return True
    is_bound = values.size == 1 and not np.isnan(values).any()  # Of a Clip.
    return is_bound or bool(np.isfinite(values).all())
