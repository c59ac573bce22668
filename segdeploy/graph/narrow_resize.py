"""A 1x1 convolution that narrows what a Resize enlarged goes in front of it.

Interpolation mixes pixels, a 1x1 convolution mixes channels: both are linear, and the weights of an
interpolation sum to one, so the bias passes through too. In front of it the convolution sees the
few pixels, and the Resize the few channels: LRASPP's head enlarges 128 channels to keep one for
each class. Equal but for rounding.
"""

from __future__ import annotations

from functools import cached_property

import onnx
from onnx import numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.constant_folding import fold_constants
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import (
    attribute,
    consumers,
    copy_model,
    copy_node,
    free_name,
    has_subgraphs,
    initializers,
    producers,
    replace_initializers,
    replace_nodes,
    tensor_names,
    to_array,
)

CONTRACT = PassContract("The narrowing before a Resize")
_SUFFIX = "_narrow"
_SAMPLE_SIDE = 256
_MODES = {b"nearest", b"linear"}  # Convex combinations of their input's pixels.


def narrow_before_resize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which no Resize enlarges channels for a 1x1 convolution to drop.

    Left alone are Resizes that others read, too, that are not known to enlarge, or that are not
    plain interpolation over height and width; and graphs with control flow, whose branches may read
    anything.
    """
    if has_subgraphs(model):
        return model
    changed = copy_model(model)
    rewrite = _Rewrite(changed)
    if not rewrite.apply():
        return changed
    return CONTRACT.check_after(model, changed)


class _Rewrite:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        graph = self.graph
        self.made, self.readers = producers(graph), consumers(graph)
        self.stored = initializers(graph)
        self.outputs = {value.name for value in graph.output}
        self.taken = set(tensor_names(graph))

    def apply(self) -> bool:
        """Change the graph in place; return whether anything was found."""
        before: dict[str, list[onnx.NodeProto]] = {}  # Result of a Resize -> nodes in its place.
        gone: set[str] = set()
        for node in self.graph.node:
            resize = self.made.get(node.input[0]) if _is_pointwise(node, self.stored) else None
            if resize is None or not self._can_swap(resize, node):
                continue
            sizes = self._sizes(resize, node)
            if sizes is not None:
                gone |= {resize.output[0], node.output[0]}
                before[node.output[0]] = self._swapped(resize, node, sizes)
        if not before:
            return False
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            result = node.output[0]
            nodes += before.get(result, [] if result in gone else [node])
        replace_nodes(self.graph, nodes)
        self._drop_unread(gone)
        replace_initializers(self.graph, self.stored.values())
        return True

    def _can_swap(self, resize: onnx.NodeProto, node: onnx.NodeProto) -> bool:
        weight = self.stored[node.input[1]]
        narrows = weight.dims[0] < weight.dims[1]
        alone = len(self.readers[resize.output[0]]) == 1 and resize.output[0] not in self.outputs
        return narrows and alone and _interpolates(resize) and self._enlarges(resize)

    def _sizes(self, resize: onnx.NodeProto, node: onnx.NodeProto) -> list[str] | None:
        """Return roi, scales and sizes of the Resize over fewer channels; None to leave it."""
        roi, scales, sizes = [*resize.input[1:], "", "", ""][:3]
        if scales or attribute(resize, "axes") is not None:
            return [roi, scales, sizes]
        if sizes in self.stored:
            return [roi, "", self._stored_sizes(sizes, node)]
        made = self.made.get(sizes)
        if made is None or made.op_type != "Concat" or len(made.input) != 2:
            return None
        ends = self.made.get(made.input[0])
        if ends is None or ends.op_type != "Shape" or ends.input[0] != resize.input[0]:
            return None
        span = attribute(ends, "start", 0), attribute(ends, "end")
        return [roi, "", sizes] if span == (0, 2) else None

    def _enlarges(self, resize: onnx.NodeProto) -> bool:
        """Return whether height and width are known to grow, and nothing else changes."""
        before, after = (self.sample.get(n) for n in (resize.input[0], resize.output[0]))
        if before is None or after is None or len(before) != 4 or len(after) != 4:
            return False
        return before[:2] == after[:2] and before[2] <= after[2] and before[3] <= after[3]

    @cached_property
    def sample(self) -> dict[str, list[int]]:
        """Shapes of all tensors for one image, where they can be found."""
        return _sample_shapes(self.model)

    def _stored_sizes(self, sizes: str, node: onnx.NodeProto) -> str:
        values = to_array(self.stored[sizes]).copy()
        values[1] = self.stored[node.input[1]].dims[0]
        name = self._narrow(sizes)
        self.stored[name] = numpy_helper.from_array(values, name)
        return name

    def _swapped(
        self, resize: onnx.NodeProto, node: onnx.NodeProto, ends: list[str]
    ) -> list[onnx.NodeProto]:
        """Return convolution, what computes the sizes anew if it has to be, and Resize."""
        convolution, enlarged = copy_node(node), copy_node(resize)
        narrow = self._narrow(resize.input[0])
        convolution.input[0], convolution.output[0] = resize.input[0], narrow
        nodes = [convolution]
        if ends[2] not in self.stored and ends[2] and attribute(resize, "axes") is None:
            ends = [*ends[:2], *self._sizes_of(narrow, ends[2], resize.input[0], nodes)]
        del enlarged.input[:]
        enlarged.input.extend([narrow, *ends])
        while not enlarged.input[-1]:
            del enlarged.input[-1]
        enlarged.output[0] = node.output[0]
        return [*nodes, enlarged]

    def _sizes_of(
        self, narrow: str, sizes: str, wide: str, nodes: list[onnx.NodeProto]
    ) -> list[str]:
        """Append the Shape and Concat of the narrow map to `nodes`; return the sizes' name."""
        concat = copy_node(self.made[sizes])
        shape = copy_node(self.made[concat.input[0]])
        shape.input[0], shape.output[0] = narrow, self._narrow(shape.output[0])
        concat.input[0], concat.output[0] = shape.output[0], self._narrow(sizes)
        shape.name, concat.name = self._narrow(shape.name), self._narrow(concat.name)
        nodes += [shape, concat]
        return [concat.output[0]]

    def _narrow(self, name: str) -> str:
        return free_name(f"{name}{_SUFFIX}", self.taken)

    def _drop_unread(self, gone: set[str]) -> None:
        """Remove what only the old sizes needed, and what is known of tensors that are no more."""
        while True:
            read = {name for node in self.graph.node for name in node.input} | self.outputs
            kept = [n for n in self.graph.node if any(name in read for name in n.output)]
            if len(kept) == len(self.graph.node):
                break
            replace_nodes(self.graph, kept)
        present = set(tensor_names(self.graph))
        values = [v for v in self.graph.value_info if v.name in present and v.name not in gone]
        del self.graph.value_info[:]
        self.graph.value_info.extend(values)


def _sample_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of a graph's tensors for one image, 256 along what it leaves open.

    Constant folding computes what dynamic graphs make of their own shapes.
    """
    sample = copy_model(model)
    for value in sample.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                dim.dim_value = 1 if axis == 0 else _SAMPLE_SIDE
    for value in sample.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del sample.graph.value_info[:]
    try:
        sample = fold_constants(sample)
    except BuildError:  # Not a size that this graph can have.
        return {}
    graph = onnx.shape_inference.infer_shapes(sample, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    return {name: dims for name, dims in shapes.items() if all(dims)}


def _is_pointwise(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Return whether a node is a 1x1 convolution with stored weights and nothing else."""
    if node.op_type != "Conv" or any(name not in stored for name in node.input[1:] if name):
        return False
    sides = stored[node.input[1]].dims[2:]
    plain = set(attribute(node, "strides", [1])) == {1} and not any(attribute(node, "pads", [0]))
    whole = attribute(node, "group", 1) == 1
    return len(sides) == 2 and set(sides) == {1} and plain and whole


def _interpolates(node: onnx.NodeProto) -> bool:
    """Return whether each pixel of a Resize's result is a weighted mean of its input's."""
    return (
        node.op_type == "Resize"
        and attribute(node, "mode", b"nearest") in _MODES
        and attribute(node, "coordinate_transformation_mode", b"half_pixel")
        != b"tf_crop_and_resize"
    )
