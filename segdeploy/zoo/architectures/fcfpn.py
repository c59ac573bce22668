"""FCFPN: a feature pyramid whose four maps are joined at stride 4, in PyTorch-Encoding's layout.

Source: Lin et al., "Feature Pyramid Networks for Object Detection", 2016, figure 3; the joined
maps as in Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018, figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeploy.zoo.architectures.context_net import Head, classifier, pyramid_architecture
from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.resize import resize_aligned

_PYRAMID, _WIDTH = 256, 512


class FCFPNHead(Head):
    """Top-down sums of all maps, each smoothed and resized to the finest, joined, to K channels."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        *finer, deepest = channels
        self.fpn_lateral = nn.ModuleList(ConvBnReLU(inputs, _PYRAMID, 1) for inputs in finer)
        self.fpn_out = nn.ModuleList(ConvBnReLU(_PYRAMID, _PYRAMID, 3, padding=1) for _ in finer)
        self.c4conv = ConvBnReLU(deepest, _PYRAMID, 3, padding=1)
        joined = ConvBnReLU(len(channels) * _PYRAMID, _WIDTH, 3, padding=1)
        self.conv5 = nn.Sequential(*joined, *classifier(_WIDTH, num_classes))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)} at the size of the finest of as many maps."""
        *finer, deepest = maps[-len(self.fpn_out) - 1 :]
        x = self.c4conv(deepest)
        pyramid = [resize_aligned(x, finer[0].shape[-2:])]
        levels = zip(finer, self.fpn_lateral, self.fpn_out, strict=True)
        for features, lateral, smooth in reversed(list(levels)):
            x = resize_aligned(x, features.shape[-2:]) + lateral(features)
            pyramid.append(resize_aligned(smooth(x), finer[0].shape[-2:]))
        return {"out": self.conv5(torch.cat(pyramid, dim=1))}


FCFPN = pyramid_architecture("fcfpn", FCFPNHead, "arXiv:1612.03144")
