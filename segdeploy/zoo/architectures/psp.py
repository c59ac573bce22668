"""PSP: pyramid pooling on a dilated encoder, in PyTorch-Encoding's layout.

Source: Zhao et al., "Pyramid Scene Parsing Network", 2016, figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.context_net import Head, classifier, dilated_architecture
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.pyramid_pooling import adaptive_avg_pool
from segdeploy.zoo.blocks.resize import resize_aligned


class PyramidPooling(nn.Module):
    """The input and its means over 1, 2, 3 and 6 bins a side, each a quarter of its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBnReLU(channels, channels // 4, 1)
        self.conv2 = ConvBnReLU(channels, channels // 4, 1)
        self.conv3 = ConvBnReLU(channels, channels // 4, 1)
        self.conv4 = ConvBnReLU(channels, channels // 4, 1)
        self.out_channels = channels + 4 * (channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H, W) of (N, C, H, W)."""
        convs = {1: self.conv1, 2: self.conv2, 3: self.conv3, 6: self.conv4}
        means = [
            resize_aligned(conv(adaptive_avg_pool(x, bins)), x.shape[-2:])
            for bins, conv in convs.items()
        ]
        return torch.cat([x, *means], dim=1)


class PSPHead(Head):
    """Pyramid pooling of the deepest map, then 3x3 and 1x1 to K channels."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        pyramid, inner = PyramidPooling(channels[-1]), channels[-1] // 4
        conv = ConvBnReLU(pyramid.out_channels, inner, 3, padding=1)
        self.conv5 = nn.Sequential(pyramid, *conv, *classifier(inner, num_classes))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)}."""
        return {"out": self.conv5(maps[-1])}


PSP = dilated_architecture("psp", PSPHead, "arXiv:1612.01105")
