"""EfficientNet B0 to B3, torchvision's own modules.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling", 2019, table 1. The first map is the
stem's and the others are the last of their stride, so the map of stride 16 comes after the second
of the two stages there; the 1x1 convolution before the classifier is kept but frozen.
"""

from __future__ import annotations

from functools import partial

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels
from segdeploy.zoo.encoders.features import chain_features

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402

# The stage behind the stem keeps its resolution and belongs to the next map: the stem's own has
# the stride 2 in segmentation-models-pytorch.
_TAPS = (0, 2, 3, 5, 7)


def build_efficientnet(options: EncoderOptions, name: str) -> ChainEncoder:
    """Return torchvision's `name` as an encoder; B0 has maps of 32, 24, 40, 112, 320 channels."""
    features = get_model(name, weights=None).features
    features[0][0] = with_in_channels(features[0][0], options.in_channels)
    return chain_features(features, _TAPS, options)


EFFICIENTNET_B0 = partial(build_efficientnet, name="efficientnet_b0")
EFFICIENTNET_B1 = partial(build_efficientnet, name="efficientnet_b1")
EFFICIENTNET_B2 = partial(build_efficientnet, name="efficientnet_b2")
EFFICIENTNET_B3 = partial(build_efficientnet, name="efficientnet_b3")
