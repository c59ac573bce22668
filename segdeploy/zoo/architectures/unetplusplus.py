"""U-Net++ on any encoder with a map of stride 2, in segmentation-models-pytorch's layout.

Source: Zhou et al., "UNet++: A Nested U-Net Architecture", 2018, without deep supervision. The
nodes of one level are joined with all nodes before them; level 0 is that of stride 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.encoder_decoder import Decoder, initialize_decoder
from segdeploy.zoo.architectures.encoder_unet import WIDTHS, center_block
from segdeploy.zoo.architectures.u_shape import UShapedNet, create_pyramid, level_channels
from segdeploy.zoo.blocks.up_conv import UpConvBlock
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture


class UnetPlusPlusDecoder(Decoder):
    """Blocks `x_<start>_<level>`: the node on the path that leaves the encoder at `start`.

    Path 0 starts at the deepest map and is the decoder proper, path i at the map of level i - 1.
    `center` is in the reference's weights for VGGs, but nothing runs through it there either.
    """

    def __init__(self, encoder: Encoder, center: nn.Module) -> None:
        super().__init__()
        deepest, skips = level_channels(encoder)
        self.num_levels = len(skips)
        coarse, blocks = [deepest], {}  # Channels of the nodes one level up, by path.
        for level, skip in enumerate(skips):
            widths = [WIDTHS[level], *[skip] * level]
            for start, width in enumerate(widths):
                joined = skip * (level + 1 - start)
                blocks[f"x_{start}_{level}"] = UpConvBlock(coarse[start], joined, width)
            coarse = [*widths, skip]
        blocks[f"x_0_{self.num_levels}"] = UpConvBlock(coarse[0], 0, WIDTHS[-1])
        self.blocks = nn.ModuleDict(blocks)
        self.center = center.requires_grad_(requires_grad=False)
        initialize_decoder(self)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return the features (N, 16, H, W) at the input size."""
        coarse = [maps[-1]]
        for level, skip in enumerate(maps[-2::-1][: self.num_levels]):
            nodes = [skip]
            for start in reversed(range(level + 1)):
                block = self.blocks[f"x_{start}_{level}"]
                nodes.insert(0, block(coarse[start], skip.shape[-2:], torch.cat(nodes, dim=1)))
            coarse = nodes
        features: Tensor = self.blocks[f"x_0_{self.num_levels}"](coarse[0], size, None)
        return features


def build_unetplusplus(encoder: str, num_classes: int, in_channels: int = 3) -> UShapedNet:
    """Return U-Net++ on `encoder`."""
    net = create_pyramid(encoder, in_channels, needed_by="unetplusplus")
    decoder = UnetPlusPlusDecoder(net, center_block(encoder, net.channels_at(32)))
    return UShapedNet(net, decoder, WIDTHS[-1], num_classes)


UNETPLUSPLUS = Architecture(
    name="unetplusplus",
    build=build_unetplusplus,
    output_stride=1,
    source="arXiv:1807.10165",
    family="segmentation-models-pytorch",
)
