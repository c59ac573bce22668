"""The residual U-block: a small UNet inside every stage of U2-Net.

Source: Qin et al., "U2-Net", 2020, figure 2. Names are those of WZ's state dicts.

Any size: pooling rounds up, so a map is never empty, and is resized to the size of its skip.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention


def halve(x: Tensor) -> Tensor:
    """Return (N, C, ceil(H/2), ceil(W/2)): the maximum of 2x2 pixels."""
    return F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)


def resize(x: Tensor, size: torch.Size) -> Tensor:
    """Return (N, C, *size), bilinear with align_corners=False."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class RSU(nn.Module):
    """A UNet of `height` levels and a residual connection around it.

    Args:
        height: Levels; each but the last two halves the size.
        in_channels: Channels of the input.
        mid_channels: Channels inside.
        out_channels: Channels of the output.
        is_dilated: RSU-4F: four levels of one size, dilated by 1, 2, 4, 8 instead of pooled.
    """

    def __init__(
        self,
        height: int,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        is_dilated: bool = False,
    ) -> None:
        super().__init__()
        down = [1, 2, 4, 8] if is_dilated else [1] * (height - 1) + [2]
        up = [4, 2, 1] if is_dilated else [1] * (height - 1)
        widths = [mid_channels] * (len(up) - 1) + [out_channels]
        self.conv_in = _conv_bn_relu(in_channels, out_channels, 1)
        self.encode_modules = nn.ModuleList(
            _conv_bn_relu(mid_channels if level else out_channels, mid_channels, rate)
            for level, rate in enumerate(down)
        )
        self.decode_modules = nn.ModuleList(
            _conv_bn_relu(2 * mid_channels, width, rate)
            for width, rate in zip(widths, up, strict=True)
        )
        self._pooled = range(0) if is_dilated else range(1, height - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H, W) of (N, in_channels, H, W)."""
        around: Tensor = self.conv_in(x)
        x, maps = around, []
        for level, conv in enumerate(self.encode_modules):
            x = conv(halve(x) if level in self._pooled else x)
            maps.append(x)
        x = maps.pop()
        for level, conv in enumerate(self.decode_modules):
            skip = maps.pop()
            x = resize(x, skip.shape[-2:]) if level in self._pooled else x
            x = conv(torch.cat([x, skip], dim=1))
        return x + around


def _conv_bn_relu(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False)
    bn, relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn, relu=relu))
