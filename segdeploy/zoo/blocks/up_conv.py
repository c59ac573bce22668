"""A decoder step: resize to the skip's size, concatenate the skip, convolve twice.

Resizing is nearest neighbour, to a size and not by a factor. Every map has n pixels where the next
finer one has 2n - 1, 2n or 2n + 1; exactly for these every runtime picks the same neighbours,
however it rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.blocks.conv import ConvBnReLU


class UpConvBlock(nn.Module):
    """Gives (N, out_channels, H, W) of a coarser map and, where there is one, a skip."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBnReLU(in_channels + skip_channels, out_channels, 3, padding=1)
        self.conv2 = ConvBnReLU(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        """Return the features at `size` (H, W), which is that of `skip` (N, C, H, W)."""
        features: Tensor = self.conv2(self.conv1(join(x, size, skip)))
        return features


def join(x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
    """Return `x` resized to `size`, with the channels of `skip` behind its own."""
    x = F.interpolate(x, size=size, mode="nearest")
    return x if skip is None else torch.cat([x, skip], dim=1)
