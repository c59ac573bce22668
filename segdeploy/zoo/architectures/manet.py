"""MA-Net on any encoder, in segmentation-models-pytorch's layout.

Source: Fan et al., "MA-Net: A Multi-Scale Attention Network for Liver and Tumor Segmentation",
2020 (IEEE Access 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.encoder_unet import WIDTHS
from segdeploy.zoo.architectures.u_shape import (
    UpChain,
    UShapedNet,
    create_pyramid,
    level_channels,
)
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.scse import channel_gate
from segdeploy.zoo.blocks.up_conv import UpConvBlock, join
from segdeploy.zoo.spec import Architecture

_PAB_CHANNELS = 64
_REDUCTION = 16


class PositionAttention(nn.Module):
    """Position-wise attention block: adds to each pixel of (N, C, H, W) a mean over all others.

    As in the reference, on which its weights depend, one softmax runs over all H*W x H*W pairs and
    the (HW, C) result is read as (C, H, W) without being transposed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.top_conv = nn.Conv2d(channels, _PAB_CHANNELS, 1)
        self.center_conv = nn.Conv2d(channels, _PAB_CHANNELS, 1)
        self.bottom_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        query = self.center_conv(x).flatten(2).transpose(1, 2)  # (N, HW, 64)
        key = self.top_conv(x).flatten(2)  # (N, 64, HW)
        value = self.bottom_conv(x).flatten(2).transpose(1, 2)  # (N, HW, C)
        pairs = query @ key
        attention = pairs.flatten(1).softmax(dim=1).reshape(pairs.shape)
        features: Tensor = self.out_conv(x + (attention @ value).reshape(x.shape))
        return features


class FusionBlock(nn.Module):
    """Multi-scale fusion attention block: a step up whose input is weighed by two SE gates."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.hl_conv = nn.Sequential(
            ConvBnReLU(in_channels, in_channels, 3, padding=1),
            ConvBnReLU(in_channels, skip_channels, 1),
        )
        reduced = max(1, skip_channels // _REDUCTION)
        self.SE_ll = channel_gate(skip_channels, reduced)
        self.SE_hl = channel_gate(skip_channels, reduced)
        self.conv1 = ConvBnReLU(2 * skip_channels, out_channels, 3, padding=1)
        self.conv2 = ConvBnReLU(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor) -> Tensor:
        """Return the features (N, out_channels, H, W) at `size`, that of `skip`."""
        x = join(self.hl_conv(x), size, None)
        x = x * (self.SE_hl(x) + self.SE_ll(skip))
        features: Tensor = self.conv2(self.conv1(torch.cat([x, skip], dim=1)))
        return features


def build_manet(encoder: str, num_classes: int, in_channels: int = 3) -> UShapedNet:
    """Return MA-Net on `encoder`."""
    net = create_pyramid(encoder, in_channels)
    deepest, skips = level_channels(net)
    steps = zip((deepest, *WIDTHS), (*skips, 0), WIDTHS, strict=False)
    blocks = [FusionBlock(*step) if step[1] else UpConvBlock(*step) for step in steps]
    decoder = UpChain(net, blocks, PositionAttention(deepest))
    return UShapedNet(net, decoder, WIDTHS[-1], num_classes)


MANET = Architecture(
    name="manet",
    build=build_manet,
    output_stride=1,
    source="doi:10.1109/ACCESS.2020.3025372",
    family="segmentation-models-pytorch",
)
