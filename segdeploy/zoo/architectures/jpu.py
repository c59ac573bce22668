"""FastFCN: joint pyramid upsampling instead of dilation, below four heads.

Source: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic
Segmentation", 2019, figure 4. The heads are PyTorch-Encoding's; EncNet's begins with a 1x1
convolution here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.context_net import ContextNet, FCNHead, Head, MakeHead
from segdeploy.zoo.architectures.deeplabv3_pe import DeepLabV3Head
from segdeploy.zoo.architectures.encnet import EncHead
from segdeploy.zoo.architectures.psp import PSPHead
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.resize import resize_aligned
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.spec import Architecture

_WIDTH = 512
_RATES = (1, 2, 4, 8)


class SeparableConv(nn.Module):
    """A dilated 3x3 convolution of each channel, batch norm, a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, rate: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False
        )
        self.bn = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C', H, W) of (N, C, H, W)."""
        joined: Tensor = self.pointwise(self.bn(self.conv1(x)))
        return joined


class JPU(nn.Module):
    """Joins the three deepest maps at the size of the finest, seen at four rates.

    Args:
        channels: Of the three maps, finest first.
    """

    out_channels = len(_RATES) * _WIDTH

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        third, fourth, fifth = channels
        self.conv5 = ConvBnReLU(fifth, _WIDTH, 3, padding=1)
        self.conv4 = ConvBnReLU(fourth, _WIDTH, 3, padding=1)
        self.conv3 = ConvBnReLU(third, _WIDTH, 3, padding=1)
        self.dilation1, self.dilation2, self.dilation3, self.dilation4 = map(_branch, _RATES)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps, the deepest replaced by (N, 2048, h, w) at the size of the third."""
        *_, third, fourth, fifth = maps
        size = third.shape[-2:]
        deep = resize_aligned(self.conv5(fifth), size), resize_aligned(self.conv4(fourth), size)
        joined = torch.cat([*deep, self.conv3(third)], dim=1)
        branches = (self.dilation1, self.dilation2, self.dilation3, self.dilation4)
        return [*maps[:-1], torch.cat([branch(joined) for branch in branches], dim=1)]


def _branch(rate: int) -> nn.Sequential:
    conv = SeparableConv(3 * _WIDTH, _WIDTH, rate)
    return nn.Sequential(conv, nn.BatchNorm2d(_WIDTH), nn.ReLU(inplace=True))


def build_jpu(
    encoder: str, num_classes: int, in_channels: int = 3, *, make_head: MakeHead
) -> ContextNet:
    """Return a head on the joined maps of `encoder`, and an auxiliary one on its last but one."""
    backbone = create_encoder(encoder, in_channels=in_channels)
    channels = backbone.channels
    head = make_head([*channels[:-1], JPU.out_channels], num_classes)
    return ContextNet(backbone, head, FCNHead(channels[-2], num_classes), JPU(channels[-3:]))


def _fcn_head(channels: Sequence[int], num_classes: int) -> Head:
    return FCNHead(channels[-1], num_classes)


def _architecture(name: str, make_head: MakeHead) -> Architecture:
    return Architecture(
        name=name,
        build=partial(build_jpu, make_head=make_head),
        output_stride=8,
        source="arXiv:1903.11816",
        family="FastFCN",
        input_size=(480, 480),
    )


JPU_DEEPLABV3 = _architecture("jpu_deeplabv3", DeepLabV3Head)
JPU_ENCNET = _architecture("jpu_encnet", partial(EncHead, kernel_size=1))
JPU_FCN = _architecture("jpu_fcn", _fcn_head)
JPU_PSP = _architecture("jpu_psp", PSPHead)
