"""UNet with batch norm, bilinear or transposed upsampling.

Source: Ronneberger et al., "U-Net", 2015; widths b, 2b, 4b, 8b and 16b/2 (bilinear) or 16b
(transposed), padded 3x3 convolutions, align_corners=True upsampling.

Any size: pooling rounds down, so an upsampled map is at most one pixel short of its skip. The
missing row or column is padded with zeros at the bottom and right; the amount is never negative,
so that eager and exported graphs cannot differ in how they round a division. Below an encoder that
rounds up, the row or column too many is cut off there.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.spec import ModelSpec


class DoubleConv(nn.Sequential):
    """Twice 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 0) -> None:
        mid = mid_channels or out_channels
        super().__init__(
            nn.Conv2d(in_channels, mid, 3, padding=1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Down(nn.Sequential):
    """Max pooling by 2, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))


class Up(nn.Module):
    """Upsample by 2, fit to the skip's size, concatenate (skip first), double convolution.

    Args:
        in_channels: Channels of the input, or of it and the skip together where bilinear.
        out_channels: Channels of the output.
        bilinear: Whether upsampling is bilinear or a transposed convolution.
        rounds_up: Whether the encoder rounds odd sizes up, so that fitting is cutting, not padding.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, bilinear: bool, rounds_up: bool = False
    ) -> None:
        super().__init__()
        self._rounds_up = rounds_up
        self.up: nn.Module
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
            self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return features (N, C', H, W) at the size of `skip` (N, C, H, W)."""
        x = self.up(x)
        height, width = skip.shape[-2:]
        if self._rounds_up:
            x = x[..., :height, :width]
        else:
            x = F.pad(x, [0, width - x.shape[-1], 0, height - x.shape[-2]])
        joined: Tensor = self.conv(torch.cat([skip, x], dim=1))
        return joined


class UNet(nn.Module):
    """The whole net; `base` is the width b of the first level."""

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, base: int = 32, bilinear: bool = True
    ) -> None:
        super().__init__()
        half = 2 if bilinear else 1
        self.in_conv = DoubleConv(in_channels, base)
        self.down1 = Down(base, base * 2)
        self.down2 = Down(base * 2, base * 4)
        self.down3 = Down(base * 4, base * 8)
        self.down4 = Down(base * 8, base * 16 // half)
        self.up1 = Up(base * 16, base * 8 // half, bilinear=bilinear)
        self.up2 = Up(base * 8, base * 4 // half, bilinear=bilinear)
        self.up3 = Up(base * 4, base * 2 // half, bilinear=bilinear)
        self.up4 = Up(base * 2, base, bilinear=bilinear)
        self.out_conv = nn.Conv2d(base, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        x1 = self.in_conv(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        return {"out": self.out_conv(self.up4(x, x1))}


def _spec(name: str, *, base: int, bilinear: bool) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(UNet, base=base, bilinear=bilinear),
        output_stride=1,
        source="arXiv:1505.04597",
        family="WZ",
        input_size=(480, 480),
    )


UNET = _spec("unet", base=32, bilinear=True)
UNET_TRANSPOSED = _spec("unet_transposed", base=32, bilinear=False)
UNET_BASE64 = _spec("unet_base64", base=64, bilinear=True)
