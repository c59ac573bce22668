"""One view on what segmentation modules return: a tensor, a dict with `out`, or a sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def split_outputs(output: Any) -> tuple[Tensor, list[Tensor]]:
    """Return (main logits, auxiliary logits) of any supported output form."""
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, dict):
        return output["out"], [value for name, value in output.items() if name != "out"]
    first, *others = output
    return first, others


def main_logits(output: Any) -> Tensor:
    """Return the main logits (N, K, H, W) of a module's output."""
    return split_outputs(output)[0]
