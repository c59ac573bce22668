"""UPerNet on any encoder, as in segmentation-models-pytorch.

Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018: pyramid pooling of
the deepest map, a feature pyramid over the maps from stride 4 on, and a fusion of its levels.
Each map is layer-normalised first, as transformers want it.
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
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_BINS = (1, 2, 3, 6)
_OUT_CHANNELS = 256


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of (N, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PSPModule(nn.Module):
    """Pyramid pooling: the map, its levels behind it, joined by a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(AdaptiveAvgPool(bins), ConvBnReLU(in_channels, out_channels, 1))
                for bins in _BINS
            ]
        )
        joined = in_channels + len(_BINS) * out_channels
        self.out_conv = ConvBnReLU(joined, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        levels = [_resize(block(x), x) for block in self.blocks]
        pooled: Tensor = self.out_conv(torch.cat([x, *levels], dim=1))
        return pooled


class LateralBlock(nn.Module):
    """A map of the encoder, projected, plus the pyramid's level above it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_norm_relu = ConvBnReLU(in_channels, out_channels, 1)

    def forward(self, above: Tensor, lateral: Tensor) -> Tensor:
        """Return (N, C', H, W) of a coarser level (N, C', h, w) and a map (N, C, H, W)."""
        projected: Tensor = self.conv_norm_relu(lateral)
        return _resize(above, projected) + projected


class UPerNetDecoder(Decoder):
    """The pyramid; its lists of layers begin at the deepest map."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._first = sum(stride < 4 for stride in encoder.strides)
        channels = encoder.channels[self._first :]
        laterals = channels[-2::-1]
        self.feature_norms = nn.ModuleList([ChannelNorm(c, eps=1e-6) for c in channels])
        self.psp = PSPModule(channels[-1], _OUT_CHANNELS)
        self.fpn_lateral_blocks = nn.ModuleList([LateralBlock(c, _OUT_CHANNELS) for c in laterals])
        self.fpn_conv_blocks = nn.ModuleList(
            [ConvBnReLU(_OUT_CHANNELS, _OUT_CHANNELS, 3, padding=1) for _ in laterals]
        )
        self.fusion_block = ConvBnReLU(len(channels) * _OUT_CHANNELS, _OUT_CHANNELS, 3, padding=1)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 256, H/4, W/4)."""
        *laterals, deepest = [
            norm(x) for norm, x in zip(self.feature_norms, maps[self._first :], strict=True)
        ]
        levels = [self.psp(deepest)]
        for block, lateral in zip(self.fpn_lateral_blocks, reversed(laterals), strict=True):
            levels.append(block(levels[-1], lateral))
        convs = (nn.Identity(), *self.fpn_conv_blocks)
        levels = [conv(level) for conv, level in zip(convs, levels, strict=True)]
        resized = [_resize(level, levels[-1]) for level in reversed(levels)]
        decoded: Tensor = self.fusion_block(torch.cat(resized, dim=1))
        return decoded


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def build_upernet(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return UPerNet on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels)
    decoder = UPerNetDecoder(backbone)
    initialize_decoder(decoder)
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes, kernel_size=1)


UPERNET = Architecture(
    name="upernet",
    build=build_upernet,
    output_stride=4,
    source="arXiv:1807.10221",
    family="segmentation-models-pytorch",
)
