"""ATTEN: self-attention over co-occurrent features and a global branch, then context encoding.

Source: Zhang et al., "Co-occurrent Features in Semantic Segmentation", CVPR 2019 (not on arXiv);
the context encoding is that of "Context Encoding for Semantic Segmentation", 2018. One softmax,
not a mixture. Other than in PyTorch-Encoding any size is taken: there a map of odd sides fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.architectures.context_net import classifier, dilated_architecture
from segdeploy.zoo.architectures.encnet import FusedHead
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.encoding import EncModule

_NUM_HEADS = 8
_DROPOUT = 0.1


class ACFModule(nn.Module):
    """Multi-head attention of all pixels to the pixels of the half-size map, with a residual.

    Keys and queries share one projection.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._head_channels = channels // _NUM_HEADS
        inner = _NUM_HEADS * self._head_channels
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.conv_qs = nn.Conv2d(channels, inner, 1)
        self.conv_vs = nn.Conv2d(channels, inner, 1)
        for conv in (self.conv_qs, self.conv_vs):
            nn.init.normal_(conv.weight, std=(2 / (channels + self._head_channels)) ** 0.5)
        self.conv = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm_layer = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of (N, C, H, W)."""
        pooled = self.pool(x)
        query, key, value = self.conv_qs(x), self.conv_qs(pooled), self.conv_vs(pooled)
        attended = F.scaled_dot_product_attention(
            self._heads(query),
            self._heads(key),
            self._heads(value),
            dropout_p=_DROPOUT if self.training else 0.0,
        )
        joined: Tensor = self.norm_layer(self.conv(attended.mT.reshape(query.shape)))
        return joined + x

    def _heads(self, x: Tensor) -> Tensor:
        """Return (N, heads, H W, channels of a head) of (N, C, H, W)."""
        return x.reshape(x.shape[0], _NUM_HEADS, self._head_channels, -1).mT


class GlobalPooling(nn.Module):
    """The mean of the map, projected, at every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *ConvBnReLU(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of (N, C, H, W)."""
        pooled: Tensor = self.gap(x)
        return pooled.expand_as(x)


class AttenHead(FusedHead):
    """Features of both branches, gated by the encoded scene, to K channels.

    Args:
        channels: Of the maps.
        num_classes: K.
        is_lateral: Whether the two maps before the deepest are used.
        has_presence: Whether there are presence logits in training.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        is_lateral: bool = False,
        has_presence: bool = False,
    ) -> None:
        width = channels[-1] // 4
        super().__init__(channels, width, is_lateral=is_lateral)
        self.atten_layers = nn.ModuleList([GlobalPooling(width), ACFModule(width)])
        self.encmodule = EncModule(2 * width, num_classes if has_presence else None)
        self.conv6 = classifier(2 * width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)}, in training maybe {"se": (N, K)} too."""
        features = self.fuse(maps)
        joined = torch.cat([layer(features) for layer in self.atten_layers], dim=1)
        gated, presence = self.encmodule(joined)
        return {"out": self.conv6(gated), **presence}


ATTEN = dilated_architecture("atten", AttenHead, "arXiv:1803.08904")
ATTEN_SE = dilated_architecture(
    "atten_se", partial(AttenHead, has_presence=True), "arXiv:1803.08904"
)
ATTEN_LATERAL = dilated_architecture(
    "atten_lateral", partial(AttenHead, is_lateral=True), "arXiv:1803.08904"
)
