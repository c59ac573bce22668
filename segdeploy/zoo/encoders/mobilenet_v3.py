"""MobileNetV3 small and large, torchvision's own modules.

Source: Howard et al., "Searching for MobileNetV3", 2019, tables 1 and 2.
"""

from __future__ import annotations

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402


def build_low_high(name: str, in_channels: int = 3) -> ChainEncoder:
    """Return `name` as the torchvision segmentation nets use it: maps of stride 8 and 16.

    The last stage is dilated by torchvision's own rule. The children are the blocks themselves, as
    there, so that whole segmentation checkpoints load unchanged.
    """
    features = get_model(name, weights=None, dilated=True).features
    features[0][0] = with_in_channels(features[0][0], in_channels)
    names = list(dict(features.named_children()))
    # torchvision marks the blocks that halve the size (C1, C2, ...); C2 has stride 8.
    begins = [i for i, block in enumerate(features) if getattr(block, "_is_cn", False)]
    low = begins[1]
    channels = features[low].out_channels, features[-1].out_channels
    stages = names[: low + 1], names[low + 1 :]
    return ChainEncoder(
        dict(features.named_children()), stages, channels, (8, 16), EncoderOptions(in_channels)
    )
