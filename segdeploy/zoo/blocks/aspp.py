"""Atrous spatial pyramid pooling, dense or separable.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; with
separable convolutions "Encoder-Decoder with Atrous Separable Convolution", 2018. Names of layers
are those that torchvision and segmentation-models-pytorch share.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segdeploy.zoo.blocks.separable import SeparableConv

_RATES = (12, 24, 36)
_DROPOUT = 0.5


class ImagePooling(nn.Sequential):
    """The mean over the image, projected, at every pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), *_norm_relu(project, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W), constant over H and W, of (N, C, H, W)."""
        size = x.shape[-2:]
        for layer in self:
            x = layer(x)
        return x.expand(-1, -1, *size)


class ASPP(nn.Module):
    """A 1x1 convolution, 3x3 ones of three rates and the image's mean, joined by a 1x1 one."""

    def __init__(self, in_channels: int, out_channels: int, *, is_separable: bool) -> None:
        super().__init__()

        def atrous(rate: int) -> nn.Module:
            if is_separable:
                return SeparableConv(in_channels, out_channels, rate)
            return nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False)

        convs = [nn.Conv2d(in_channels, out_channels, 1, bias=False), *map(atrous, _RATES)]
        branches = [nn.Sequential(*_norm_relu(conv, out_channels)) for conv in convs]
        self.convs = nn.ModuleList([*branches, ImagePooling(in_channels, out_channels)])
        project = nn.Conv2d(len(self.convs) * out_channels, out_channels, 1, bias=False)
        self.project = nn.Sequential(*_norm_relu(project, out_channels), nn.Dropout(_DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        joined: Tensor = self.project(torch.cat([conv(x) for conv in self.convs], dim=1))
        return joined


def _norm_relu(conv: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
