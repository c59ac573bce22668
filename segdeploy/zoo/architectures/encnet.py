"""EncNet: a dilated encoder and a head that gates its features by the encoded scene.

Source: Zhang et al., "Context Encoding for Semantic Segmentation", 2018, figure 2. With `lateral`
the head also takes the two maps before the deepest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.context_net import Head, classifier, dilated_architecture
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.encoding import EncModule

_WIDTH = 512


class FusedHead(Head):
    """A head whose features are the deepest map, optionally joined with the two before.

    Args:
        channels: Of the maps.
        width: Channels of the features.
        is_lateral: Whether the two maps before are used, which must have the same size.
        kernel_size: Of the convolution of the deepest map.
    """

    def __init__(
        self, channels: Sequence[int], width: int, *, is_lateral: bool, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.conv5 = ConvBnReLU(channels[-1], width, kernel_size, padding=kernel_size // 2)
        self.connect = nn.ModuleList()
        if is_lateral:
            self.connect.extend(ConvBnReLU(inputs, width, 1) for inputs in channels[-3:-1])
            self.fusion = ConvBnReLU(3 * width, width, 3, padding=1)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Return features (N, width, h, w)."""
        features: Tensor = self.conv5(maps[-1])
        if not self.connect:
            return features
        laterals = [conv(x) for conv, x in zip(self.connect, maps[-3:-1], strict=True)]
        fused: Tensor = self.fusion(torch.cat([features, *laterals], dim=1))
        return fused


class EncHead(FusedHead):
    """Features, gated by the encoded scene, to K channels."""

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        is_lateral: bool = False,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(channels, _WIDTH, is_lateral=is_lateral, kernel_size=kernel_size)
        self.encmodule = EncModule(_WIDTH, num_classes)
        self.conv6 = classifier(_WIDTH, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)}, in training also {"se": (N, K)}."""
        features, presence = self.encmodule(self.fuse(maps))
        return {"out": self.conv6(features), **presence}


ENCNET = dilated_architecture("encnet", EncHead, "arXiv:1803.08904")
ENCNET_LATERAL = dilated_architecture(
    "encnet_lateral", partial(EncHead, is_lateral=True), "arXiv:1803.08904"
)
