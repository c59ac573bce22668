"""Encoders of the torchvision nets whose body is one sequence, `features`.

Keys are torchvision's (`features.0...`), so classification weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions


def chain_features(
    features: nn.Sequential,
    taps: Sequence[int],
    options: EncoderOptions,
    strides: Sequence[int] = (2, 4, 8, 16, 32),
) -> ChainEncoder:
    """Return `features` as an encoder; what is behind the last tap is kept but frozen.

    Args:
        features: The body, already with the right number of input channels.
        taps: Index of the last module of each stage.
        options: What the decoder asks for.
        strides: Undilated stride of each stage.
    """
    bounds = [0, *(tap + 1 for tap in taps)]
    stages = [[f"features.{i}" for i in range(a, b)] for a, b in pairwise(bounds)]
    channels = [_out_channels(features[:end]) for end in bounds[1:]]
    return ChainEncoder({"features": features}, stages, channels, strides, options)


def _out_channels(modules: nn.Module) -> int:
    """Channels of the last convolution; normalisation, activation and pooling keep them."""
    return [m.out_channels for m in modules.modules() if isinstance(m, nn.Conv2d)][-1]
