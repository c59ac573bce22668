"""1x1 convolutions without dilation, which changes nothing but keeps runtimes from their fast path.

Encoders of segmentation-models-pytorch dilate whole stages, 1x1 convolutions included. ONNX Runtime
computes an undilated one as one matrix product, a dilated one by way of a copy of its input.
"""

from __future__ import annotations

import onnx


def undilate_pointwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Set the dilation of every convolution with kernel 1x1 to 1, in place; return the model."""
    kernels = {w.name: w.dims[2:] for w in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and all(k == 1 for k in kernels.get(node.input[1], [0])):
            for attribute in node.attribute:
                if attribute.name == "dilations":
                    attribute.ints[:] = [1] * len(attribute.ints)
    return model
