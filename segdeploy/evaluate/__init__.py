"""Evaluate: how good is a checkpoint or artifact against labels? The same path for all of them.

    result = evaluate(Path("runs/a/onnx-int8"), data="camvid:data/camvid")
    result.mean_iou, result.class_iou

One function; it needs no torch for an artifact whose runtime needs none.
"""

from __future__ import annotations

from segdeploy.evaluate.shards import is_main
from segdeploy.evaluate.stage import evaluate

__all__ = ["evaluate", "is_main"]
