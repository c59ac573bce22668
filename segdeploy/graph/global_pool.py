"""The mean over height and width as GlobalAveragePool, which is what torch.onnx had before dynamo.

The same numbers by another name, and runtimes know this one better: ONNX Runtime has kernels of it
for bytes and for its blocked layout, while a ReduceMean has its whole map dequantised, or put back
in order, for one number a channel (LRASPP int8 with quantised gates: 19.5 ms become 16).
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from segdeploy.graph.node_groups import reduced_axes
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import (
    attribute,
    copy_model,
    has_subgraphs,
    initializers,
    replace_initializers,
)

CONTRACT = PassContract("The global pooling")
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}


def use_global_pool(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph whose ReduceMean over H and W of N x C x H x W maps are GlobalAveragePool.

    Where the two axes are not kept, or the rank of the map is unknown, it stays what it is; so does
    a graph with control flow, whose branches read tensors of the main graph.
    """
    if has_subgraphs(model) or all(node.op_type != "ReduceMean" for node in model.graph.node):
        return model
    maps = _float_maps(model)
    changed = copy_model(model)
    stored = initializers(changed.graph)
    for node in changed.graph.node:
        is_mean = node.op_type == "ReduceMean" and attribute(node, "keepdims", 1)
        if is_mean and node.input[0] in maps and reduced_axes(node, stored) == {2, 3}:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:], node.input[1:]
    replace_initializers(changed.graph, stored.values())
    return CONTRACT.check_after(model, changed)


def _float_maps(model: onnx.ModelProto) -> set[str]:
    """Return the float tensors of four dimensions, as far as shape inference finds them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type for value in values}
    return {
        name
        for name, kind in kinds.items()
        if kind.elem_type in _FLOATS and kind.HasField("shape") and len(kind.shape.dim) == 4
    }
