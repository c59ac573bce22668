"""DeepLabV3+ on any encoder at output stride 16, as in segmentation-models-pytorch.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", 2018. The rates are 12, 24, 36, where the paper has half of them at this stride.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.architectures.encoder_decoder import Decoder, EncoderDecoder
from segdeploy.zoo.blocks.aspp import ASPP
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.separable import SeparableConv
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_OUT_CHANNELS = 256
_FINE_CHANNELS = 48  # Section 4.1 of the paper.


class DeepLabV3PlusDecoder(Decoder):
    """ASPP of the deepest map, joined with the map of stride 4."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._fine = sum(stride < 4 for stride in encoder.strides)
        self.aspp = nn.Sequential(
            ASPP(encoder.channels[-1], _OUT_CHANNELS, is_separable=True),
            *_separable(_OUT_CHANNELS),
        )
        self.block1 = ConvBnReLU(encoder.channels[self._fine], _FINE_CHANNELS, 1)
        self.block2 = nn.Sequential(*_separable(_FINE_CHANNELS + _OUT_CHANNELS))

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return (N, 256, H/4, W/4)."""
        fine = self.block1(maps[self._fine])
        deep = F.interpolate(
            self.aspp(maps[-1]), size=fine.shape[-2:], mode="bilinear", align_corners=True
        )
        decoded: Tensor = self.block2(torch.cat([deep, fine], dim=1))
        return decoded


def _separable(in_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = SeparableConv(in_channels, _OUT_CHANNELS)
    return convolution, nn.BatchNorm2d(_OUT_CHANNELS), nn.ReLU(inplace=True)


def build_deeplabv3plus(encoder: str, num_classes: int, in_channels: int = 3) -> EncoderDecoder:
    """Return DeepLabV3+ on `encoder`."""
    backbone = create_encoder(encoder, in_channels=in_channels, output_stride=16)
    decoder = DeepLabV3PlusDecoder(backbone)
    return EncoderDecoder(backbone, decoder, _OUT_CHANNELS, num_classes, kernel_size=1)


DEEPLABV3PLUS = Architecture(
    name="deeplabv3plus",
    build=build_deeplabv3plus,
    output_stride=4,
    source="arXiv:1802.02611",
    family="segmentation-models-pytorch",
)
