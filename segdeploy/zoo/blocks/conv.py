"""The unit of most decoders: convolution without bias, batch norm, ReLU."""

from __future__ import annotations

from torch import nn


class ConvBnReLU(nn.Sequential):
    """Maps (N, C, H, W) to (N, C', H', W'); children 0, 1, 2 as in segmentation-models-pytorch."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
