"""Concurrent spatial and channel squeeze and excitation (scSE), and a decoder step with it.

Source: Roy et al., "Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze &
Excitation' Blocks", 2018; both gates are added, as in segmentation-models-pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdeploy.zoo.blocks.up_conv import UpConvBlock, join

_REDUCTION = 16


def channel_gate(channels: int, reduced: int) -> nn.Sequential:
    """Return a net that gives one weight (N, C, 1, 1) in (0, 1) per channel (SE)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(channels, reduced, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(reduced, channels, 1),
        nn.Sigmoid(),
    )


class SCSE(nn.Module):
    """Weighs the channels and the pixels of (N, C, H, W) by two gates."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cSE = channel_gate(channels, channels // _REDUCTION)
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted features."""
        weighted: Tensor = x * self.cSE(x) + x * self.sSE(x)
        return weighted


class SCSEUpBlock(UpConvBlock):
    """A decoder step with scSE on the joined maps and on its result.

    Args:
        in_channels: Channels of the coarser map.
        skip_channels: Channels of the skip, or 0.
        out_channels: Channels of the result.
        is_last: Whether this is the step to the input size: its first attention is in the
            reference's weights, but nothing runs through it.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, *, is_last: bool = False
    ) -> None:
        super().__init__(in_channels, skip_channels, out_channels)
        self.attention1 = nn.ModuleDict({"attention": SCSE(in_channels + skip_channels)})
        self.attention2 = nn.ModuleDict({"attention": SCSE(out_channels)})
        self.attention1.requires_grad_(not is_last)
        self.is_last = is_last

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        """Return the features (N, out_channels, H, W) at `size`."""
        x = join(x, size, skip)
        if not self.is_last:
            x = self.attention1["attention"](x)
        features: Tensor = self.attention2["attention"](self.conv2(self.conv1(x)))
        return features
