"""FPN on any encoder, in segmentation-models-pytorch's layout.

Source: Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, section 3 (the semantic branch),
on Lin et al., "Feature Pyramid Networks", 2016. Logits have stride 4 before the last upsampling.
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
from segdeploy.zoo.architectures.u_shape import create_pyramid
from segdeploy.zoo.blocks.up_conv import join
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_PYRAMID_CHANNELS = 256
_CHANNELS = 128
_GROUPS = 32
_DROPOUT = 0.2


class TopDown(nn.Module):
    """Adds a 1x1 convolution of the skip to the coarser map."""

    def __init__(self, skip_channels: int) -> None:
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, _PYRAMID_CHANNELS, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the pyramid's map (N, 256, H, W) at the size of `skip`."""
        merged: Tensor = join(x, skip.shape[-2:], None) + self.skip_conv(skip)
        return merged


class ConvGnReLU(nn.Module):
    """3x3 convolution, group norm, ReLU, then bilinear upsampling if a size is given."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, _CHANNELS, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, _CHANNELS),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        """Return the features (N, 128, H, W) at `size`, or at that of `x`."""
        x = self.block(x)
        if size is None:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class UpBranch(nn.Module):
    """Takes a map of the pyramid to stride 4, through the sizes of all maps between."""

    def __init__(self, num_upsamplings: int) -> None:
        super().__init__()
        widths = [_PYRAMID_CHANNELS, *[_CHANNELS] * max(0, num_upsamplings - 1)]
        self.block = nn.ModuleList(ConvGnReLU(width) for width in widths)

    def forward(self, x: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        """Return the features (N, 128, H/4, W/4); `sizes` (H, W), coarsest first."""
        targets: Sequence[Sequence[int] | None] = sizes or [None]
        for block, size in zip(self.block, targets, strict=True):
            x = block(x, size)
        return x


class FPNDecoder(Decoder):
    """The pyramid of strides 4 to 32 and the sum of its branches."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        deepest, *skips = (encoder.channels_at(stride) for stride in (32, 16, 8, 4))
        self.p5 = nn.Conv2d(deepest, _PYRAMID_CHANNELS, 1)
        self.p4, self.p3, self.p2 = (TopDown(skip) for skip in skips)
        self.seg_blocks = nn.ModuleList(UpBranch(num) for num in (3, 2, 1, 0))
        self.dropout = nn.Dropout2d(_DROPOUT)
        initialize_decoder(self)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return the features (N, 128, H/4, W/4)."""
        c2, c3, c4, c5 = maps[-4:]
        p5 = self.p5(c5)
        p4 = self.p4(p5, c4)
        p3 = self.p3(p4, c3)
        p2 = self.p2(p3, c2)
        sizes = [x.shape[-2:] for x in (c4, c3, c2)]
        pyramid = enumerate((p5, p4, p3, p2))
        merged = torch.stack([self.seg_blocks[i](x, sizes[i:]) for i, x in pyramid]).sum(dim=0)
        features: Tensor = self.dropout(merged)
        return features


def build_fpn(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return FPN on `encoder`."""
    net = create_pyramid(encoder, in_channels)
    return EncoderDecoder(net, FPNDecoder(net), _CHANNELS, num_classes, kernel_size=1)


FPN = Architecture(
    name="fpn",
    build=build_fpn,
    output_stride=4,
    source="arXiv:1901.02446",
    family="segmentation-models-pytorch",
)
