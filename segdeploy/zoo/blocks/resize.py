"""The resizing of PyTorch-Encoding and FastFCN: bilinear, the corners of both maps aligned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own convention


def resize_aligned(x: Tensor, size: torch.Size) -> Tensor:
    """Return (N, C, *size), bilinear with align_corners=True."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
