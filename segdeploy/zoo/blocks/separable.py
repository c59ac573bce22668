"""Depthwise separable convolution.

Source: Chollet, "Xception", 2016; without norm or activation between the two, as in DeepLabV3+ of
segmentation-models-pytorch.
"""

from __future__ import annotations

from torch import nn


class SeparableConv(nn.Sequential):
    """A 3x3 convolution within each channel, then a 1x1 convolution across them; keeps H, W."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                in_channels,
                3,
                padding=dilation,
                dilation=dilation,
                groups=in_channels,
                bias=False,
            ),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )
