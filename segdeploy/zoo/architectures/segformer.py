"""SegFormer's decoder on any encoder, as in segmentation-models-pytorch.

Source: Xie et al., "SegFormer", 2021: a linear layer for each map, all brought to stride 4 and
fused. On an encoder that has a map of stride 2 that one takes part too, one of stride 1 (VGG) not.
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
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_OUT_CHANNELS = 256


class PixelLinear(nn.Module):
    """A linear layer over the channels of each pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        projected: Tensor = self.linear(x.permute(0, 2, 3, 1))
        return projected.permute(0, 3, 1, 2)


class SegformerDecoder(Decoder):
    """A linear layer for each map, deepest first, and a 1x1 convolution over all of them."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._first = sum(stride < 2 for stride in encoder.strides)
        self._fine = sum(stride < 4 for stride in encoder.strides)
        channels = encoder.channels[self._first :]
        self.mlp_stage = nn.ModuleList([PixelLinear(c, _OUT_CHANNELS) for c in reversed(channels)])
        self.fuse_stage = ConvBnReLU(len(channels) * _OUT_CHANNELS, _OUT_CHANNELS, 1)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 256, H/4, W/4)."""
        target = maps[self._fine].shape[-2:]
        resized = [
            F.interpolate(mlp(x), size=target, mode="bilinear", align_corners=False)
            for mlp, x in zip(self.mlp_stage, reversed(maps[self._first :]), strict=True)
        ]
        decoded: Tensor = self.fuse_stage(torch.cat(resized, dim=1))
        return decoded


def build_segformer(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return SegFormer on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels)
    decoder = SegformerDecoder(backbone)
    initialize_decoder(decoder)
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes, kernel_size=1)


SEGFORMER = Architecture(
    name="segformer",
    build=build_segformer,
    output_stride=4,
    source="arXiv:2105.15203",
    family="segmentation-models-pytorch",
)
