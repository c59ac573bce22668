"""Adaptive average pooling to a few bins, for any size, also in exported graphs.

`nn.AdaptiveAvgPool2d` cannot be exported where H and W are dynamic and no multiple of the bins:
where each bin begins depends on the size. The mean over a bin is linear, so each axis is one
matrix product, whose matrix is computed from the size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveAvgPool(nn.Module):
    """`adaptive_avg_pool` as a module, for a Sequential."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, bins, bins) of (N, C, H, W)."""
        return adaptive_avg_pool(x, self.bins)


def adaptive_avg_pool(x: Tensor, bins: int) -> Tensor:
    """Return (N, C, bins, bins) of (N, C, H, W), equal to `F.adaptive_avg_pool2d(x, bins)`.

    Under autocast it computes and returns float32, since bfloat16 keeps 8 bits of a mean.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return adaptive_avg_pool(x.float(), bins)
    if bins == 1:
        return x.mean((2, 3), keepdim=True)
    rows = _pooling_matrix(x.shape[-2], bins, x)
    columns = _pooling_matrix(x.shape[-1], bins, x)
    return rows @ (x @ columns.mT)


def _pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """Return (bins, size): each row has 1/count at the pixels that its bin overlaps, else 0.

    Pixel p is [p, p + 1), bin i is [i, i + 1) * size / bins; compared in integers, undivided. The
    weights are normalised before the product, so that no sum leaves the range of half precision.
    """
    pixel = torch.arange(size, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    overlaps = ((pixel + 1) * bins > index * size) & (pixel * bins < (index + 1) * size)
    inside = overlaps.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
