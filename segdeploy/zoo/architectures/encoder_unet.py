"""U-Net on any encoder, plain or with scSE attention, in segmentation-models-pytorch's layout.

Source: Ronneberger et al., "U-Net", 2015; for the attention see `segdeploy.zoo.blocks.scse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from segdeploy.zoo.architectures.u_shape import (
    UpChain,
    UShapedNet,
    create_pyramid,
    level_channels,
)
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.scse import SCSEUpBlock
from segdeploy.zoo.blocks.up_conv import UpConvBlock
from segdeploy.zoo.spec import Architecture

WIDTHS = (256, 128, 64, 32, 16)
Channels = tuple[int, int, int]  # Input, skip and output channels of a step.


def build_unet(
    encoder: str, num_classes: int, in_channels: int = 3, *, has_scse: bool = False
) -> UShapedNet:
    """Return U-Net on `encoder`."""
    net = create_pyramid(encoder, in_channels)
    deepest, skips = level_channels(net)
    steps = list(zip((deepest, *WIDTHS), (*skips, 0), WIDTHS, strict=False))
    blocks = _scse_blocks(steps) if has_scse else [UpConvBlock(*step) for step in steps]
    center = center_block(encoder, deepest)
    return UShapedNet(net, UpChain(net, blocks, center), WIDTHS[-1], num_classes)


def center_block(encoder: str, channels: int) -> nn.Module:
    """Return two convolutions if `encoder` is a VGG, whose deepest map is a mere pooling."""
    if not encoder.startswith("vgg"):
        return nn.Identity()
    return nn.Sequential(*(ConvBnReLU(channels, channels, 3, padding=1) for _ in range(2)))


def _scse_blocks(steps: Sequence[Channels]) -> list[UpConvBlock]:
    last = len(steps) - 1
    return [SCSEUpBlock(*step, is_last=i == last) for i, step in enumerate(steps)]


UNET = Architecture(
    name="unet",
    build=build_unet,
    output_stride=1,
    source="arXiv:1505.04597",
    family="segmentation-models-pytorch",
)
UNET_SMP = replace(UNET, name="unet_smp")
UNET_SCSE = Architecture(
    name="unet_scse",
    build=partial(build_unet, has_scse=True),
    output_stride=1,
    source="arXiv:1808.08127",
    family="segmentation-models-pytorch",
)
