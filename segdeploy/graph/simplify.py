"""What every plain graph is written as before anything else is made of it."""

from __future__ import annotations

import onnx

from segdeploy.graph.global_pool import use_global_pool
from segdeploy.graph.narrow_resize import narrow_before_resize


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a plain fp32 graph in the form that costs runtimes least; equal but for rounding."""
    return narrow_before_resize(use_global_pool(model))
