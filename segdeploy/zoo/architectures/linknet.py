"""LinkNet on any encoder with a map of stride 2, in segmentation-models-pytorch's layout.

Source: Chaurasia and Culurciello, "LinkNet", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdeploy.zoo.architectures.u_shape import (
    UpChain,
    UShapedNet,
    create_pyramid,
    level_channels,
)
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.spec import Architecture

_LAST_WIDTH = 32


class Double(nn.Sequential):
    """Transposed convolution to twice the size, batch norm, ReLU.

    The skip has 2n - 1, 2n or 2n + 1 pixels where the input has n: with `output_padding` the
    convolution gives 2n + 1, and what is too much is cut off before the norm sees it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Return the features (N, C, H, W) at `size`."""
        height, width = size
        conv, norm, activation = self
        features: Tensor = activation(norm(conv(x)[..., :height, :width]))
        return features


class LinkBlock(nn.Module):
    """Doubles the size at a quarter of the input's channels, then adds the skip."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid = in_channels // 4
        self.block = nn.Sequential(
            ConvBnReLU(in_channels, mid, 1), Double(mid), ConvBnReLU(mid, out_channels, 1)
        )

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None) -> Tensor:
        """Return the features (N, out_channels, H, W) at `size`, that of `skip`."""
        reduce, double, expand = self.block
        x = expand(double(reduce(x), size))
        return x if skip is None else x + skip


def build_linknet(encoder: str, num_classes: int, in_channels: int = 3) -> UShapedNet:
    """Return LinkNet on `encoder`."""
    net = create_pyramid(encoder, in_channels, needed_by="linknet")
    deepest, skips = level_channels(net)
    steps = zip((deepest, *skips), (*skips, _LAST_WIDTH), strict=True)
    decoder = UpChain(net, [LinkBlock(*step) for step in steps])
    return UShapedNet(net, decoder, _LAST_WIDTH, num_classes, kernel_size=1)


LINKNET = Architecture(
    name="linknet",
    build=build_linknet,
    output_stride=1,
    source="arXiv:1707.03718",
    family="segmentation-models-pytorch",
)
