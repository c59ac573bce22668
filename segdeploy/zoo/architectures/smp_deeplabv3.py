"""DeepLabV3 on any encoder at output stride 8, as in segmentation-models-pytorch.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. Other
than torchvision's there is no auxiliary head, the head resizes with align_corners=True, and the
first convolution of a dilated stage has the new dilation already. Three names are torchvision's
(`deeplabv3_resnet50`, ...): this one is under `deeplabv3_smp_<encoder>` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.encoder_decoder import Decoder, EncoderDecoder
from segdeploy.zoo.blocks.aspp import ASPP
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.spec import Architecture

_OUT_CHANNELS = 256


class DeepLabV3Decoder(Decoder):
    """ASPP of the deepest map, then a 3x3 convolution."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, _OUT_CHANNELS, is_separable=False)
        self.conv = nn.Conv2d(_OUT_CHANNELS, _OUT_CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_OUT_CHANNELS)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 256, H/8, W/8)."""
        return torch.relu(self.bn(self.conv(self.aspp(maps[-1]))))


def build_deeplabv3(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return DeepLabV3 on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels, output_stride=8)
    decoder = DeepLabV3Decoder(backbone.channels[-1])
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes, kernel_size=1)


DEEPLABV3 = Architecture(
    name="deeplabv3",
    build=build_deeplabv3,
    output_stride=8,
    source="arXiv:1706.05587",
    family="segmentation-models-pytorch",
)
DEEPLABV3_SMP = replace(DEEPLABV3, name="deeplabv3_smp")
