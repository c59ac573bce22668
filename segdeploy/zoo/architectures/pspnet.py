"""PSPNet on the stride-8 map of any encoder, as in segmentation-models-pytorch.

Source: Zhao et al., "Pyramid Scene Parsing Network", 2016. There the encoder ends at stride 8: its
deeper stages are held, since weights hold them, but never run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.architectures.encoder_decoder import (
    Decoder,
    EncoderDecoder,
    initialize_decoder,
)
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.pyramid_pooling import AdaptiveAvgPool
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.spec import Architecture

_BINS = (1, 2, 3, 6)
_OUT_CHANNELS = 512


class PSPBlock(nn.Module):
    """One level of the pyramid: pooled to bins, projected, resized back.

    The level of one bin has no batch norm: in training it would normalise over N values only.
    """

    def __init__(self, in_channels: int, out_channels: int, bins: int) -> None:
        super().__init__()
        project = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(inplace=True))
            if bins == 1
            else ConvBnReLU(in_channels, out_channels, 1)
        )
        self.pool = nn.Sequential(AdaptiveAvgPool(bins), project)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        size = x.shape[-2:]
        return F.interpolate(self.pool(x), size=size, mode="bilinear", align_corners=True)


class PSPModule(nn.Module):
    """The pyramid's levels, each with a quarter of the channels, before the map itself."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = in_channels // len(_BINS)
        self.blocks = nn.ModuleList([PSPBlock(in_channels, width, bins) for bins in _BINS])
        self.out_channels = in_channels + width * len(_BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, `out_channels`, H, W) of (N, C, H, W)."""
        return torch.cat([*(block(x) for block in self.blocks), x], dim=1)


class PSPDecoder(Decoder):
    """Pyramid pooling of the deepest map, and one projection."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.psp = PSPModule(in_channels)
        self.conv = ConvBnReLU(self.psp.out_channels, _OUT_CHANNELS, 1)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 512, H/8, W/8)."""
        decoded: Tensor = self.dropout(self.conv(self.psp(maps[-1])))
        return decoded


def build_pspnet(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return PSPNet on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels, depth=3)
    decoder = PSPDecoder(backbone.channels[-1])
    initialize_decoder(decoder)
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes)


PSPNET = Architecture(
    name="pspnet",
    build=build_pspnet,
    output_stride=8,
    source="arXiv:1612.01105",
    family="segmentation-models-pytorch",
)
