"""MobileNetV2, torchvision's own modules.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
The last 1x1 convolution (1280 channels) belongs to the deepest map, as in
segmentation-models-pytorch.
"""

from __future__ import annotations

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels
from segdeploy.zoo.encoders.features import chain_features

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402


def build_mobilenet_v2(options: EncoderOptions) -> ChainEncoder:
    """Return the encoder, with maps of 16, 24, 32, 96 and 1280 channels."""
    features = get_model("mobilenet_v2", weights=None).features
    features[0][0] = with_in_channels(features[0][0], options.in_channels)
    return chain_features(features, (1, 3, 6, 13, 18), options)
