"""UPerNet in PyTorch-Encoding's layout: FCFPN whose deepest map is pyramid-pooled first.

Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018, figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from segdeploy.zoo.architectures.context_net import pyramid_architecture
from segdeploy.zoo.architectures.fcfpn import FCFPNHead
from segdeploy.zoo.architectures.psp import PyramidPooling


class UPerHead(FCFPNHead):
    """Pyramid pooling of the deepest map, then a feature pyramid."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        pyramid = PyramidPooling(channels[-1])
        super().__init__([*channels[:-1], pyramid.out_channels], num_classes)
        self.extramodule = pyramid

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)} at the size of the finest of as many maps."""
        return super().forward([*maps[:-1], self.extramodule(maps[-1])])


UPERHEAD = pyramid_architecture("uperhead", UPerHead, "arXiv:1807.10221")
