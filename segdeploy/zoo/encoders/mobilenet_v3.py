"""MobileNetV3 small and large, torchvision's own modules.

Source: Howard et al., "Searching for MobileNetV3", 2019, tables 1 and 2. There are two ways to use
it: five maps for a decoder with skip connections, and two as in torchvision's segmentation nets.
"""

from __future__ import annotations

from functools import partial

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels
from segdeploy.zoo.encoders.features import chain_features

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402

# The last block of each stride. The 1x1 convolution behind them prepares the classifier: the
# U-Nets on this net (MobileV3Unet) leave it out, so it is kept but frozen.
_TAPS = {"mobilenet_v3_small": (0, 1, 3, 8, 11), "mobilenet_v3_large": (1, 3, 6, 12, 15)}


def build_mobilenet_v3(options: EncoderOptions, name: str) -> ChainEncoder:
    """Return `name` as an encoder; the large one has maps of 16, 24, 40, 112, 160 channels."""
    features = get_model(name, weights=None).features
    features[0][0] = with_in_channels(features[0][0], options.in_channels)
    return chain_features(features, _TAPS[name], options)


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


MOBILENET_V3_SMALL = partial(build_mobilenet_v3, name="mobilenet_v3_small")
MOBILENET_V3_LARGE = partial(build_mobilenet_v3, name="mobilenet_v3_large")
