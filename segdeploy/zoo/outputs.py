"""One view on what segmentation modules return: a tensor, a dict with `out`, or a sequence.

In a dict, `out` are the main logits, names that begin with `aux` are auxiliary ones of the same
meaning, `se` are presence logits (N, K); anything else is ignored. Models of transformers return
an object with `logits` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PRESENCE = "se"


def split_outputs(output: Any) -> tuple[Tensor, list[Tensor]]:
    """Return (main logits, auxiliary logits) of any supported output form."""
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, Mapping) and "out" in output:
        return output["out"], [value for key, value in output.items() if key.startswith("aux")]
    if hasattr(output, "logits"):
        return output.logits, []
    first, *others = output
    return first, others


def main_logits(output: Any) -> Tensor:
    """Return the main logits (N, K, H, W) of a module's output."""
    return split_outputs(output)[0]


def presence_logits(output: Any) -> Tensor | None:
    """Return the logits (N, K) that say which classes an image shows, if the module gives any."""
    return output.get(PRESENCE) if isinstance(output, Mapping) else None
