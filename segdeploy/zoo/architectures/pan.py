"""PAN on any encoder at output stride 16, as in segmentation-models-pytorch.

Source: Li et al., "Pyramid Attention Network for Semantic Segmentation", 2018.
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
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_OUT_CHANNELS = 32


class ConvBn(nn.Module):
    """Convolution with bias, batch norm, and ReLU unless `is_linear`; keeps H, W."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, is_linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = nn.Identity() if is_linear else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        activated: Tensor = self.activation(self.bn(self.conv(x)))
        return activated


class Halve(nn.Module):
    """Max pooling by 2 that rounds down, but never to nothing: one pixel stays one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, max(H // 2, 1), max(W // 2, 1)) of (N, C, H, W)."""
        height, width = x.shape[-2:]
        pooled = F.max_pool2d(x, 2, ceil_mode=True)
        return pooled[..., : height // 2 + 1 // height, : width // 2 + 1 // width]


class FeaturePyramidAttention(nn.Module):
    """Attention from three coarser scales, plus the mean over the image (figure 3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBn(in_channels, out_channels, 1))
        self.mid = nn.Sequential(ConvBn(in_channels, out_channels, 1))
        self.down1 = nn.Sequential(Halve(), ConvBn(in_channels, 1, 7))
        self.down2 = nn.Sequential(Halve(), ConvBn(1, 1, 5))
        self.down3 = nn.Sequential(Halve(), ConvBn(1, 1, 3), ConvBn(1, 1, 3))
        self.conv2 = ConvBn(1, 1, 5)
        self.conv1 = ConvBn(1, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        x1 = self.down1(x)
        x2 = self.down2(x1)
        attention = _resize(self.down3(x2), x2) + self.conv2(x2)
        attention = _resize(attention, x1) + self.conv1(x1)
        attended: Tensor = _resize(attention, x) * self.mid(x) + self.branch1(x)
        return attended


class GlobalAttentionUpsample(nn.Module):
    """A finer map weighted by the mean of the coarser features, plus these (figure 4)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            ConvBn(out_channels, out_channels, 1, is_linear=True),
            nn.Sigmoid(),
        )
        self.conv2 = ConvBn(in_channels, out_channels, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return (N, C', H, W) of a map (N, C, H, W) and features (N, C', h, w)."""
        upsampled: Tensor = _resize(coarse, fine) + self.conv2(fine) * self.conv1(coarse)
        return upsampled


class PANDecoder(Decoder):
    """Attention on the deepest map; upsampling over the others down to stride 4."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._first = sum(stride < 4 for stride in encoder.strides)
        *finer, deepest = encoder.channels[self._first :]
        self.fpa = FeaturePyramidAttention(deepest, _OUT_CHANNELS)
        self._names = [f"gau{i}" for i in range(len(finer), 0, -1)]
        for name, channels in zip(self._names, reversed(finer), strict=True):
            self.add_module(name, GlobalAttentionUpsample(channels, _OUT_CHANNELS))

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 32, H/4, W/4)."""
        *finer, deepest = maps[self._first :]
        decoded: Tensor = self.fpa(deepest)
        for name, fine in zip(self._names, reversed(finer), strict=True):
            decoded = self.get_submodule(name)(fine, decoded)
        return decoded


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def build_pan(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return PAN on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels, output_stride=16)
    decoder = PANDecoder(backbone)
    initialize_decoder(decoder)
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes)


PAN = Architecture(
    name="pan",
    build=build_pan,
    output_stride=4,
    source="arXiv:1805.10180",
    family="segmentation-models-pytorch",
)
