"""VGG-16 with batch norm, torchvision's own layers.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2014, table 1, column D. The
maps are those before each pooling, from stride 1 on, and the last pooled one. It has no strided
convolution and cannot be dilated.
"""

from __future__ import annotations

from torch import nn

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels
from segdeploy.zoo.encoders.features import chain_features

prepare_torchvision()
from torchvision.models.vgg import cfgs, make_layers  # noqa: E402


def build_vgg16_bn(options: EncoderOptions) -> ChainEncoder:
    """Return the encoder, with maps of 64, 128, 256 and three times 512 channels.

    Only the layers are built: the classifier that comes with the whole net has 124 million
    parameters, and to initialise them takes seconds.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    for conv in (m for m in features if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    features[0] = with_in_channels(features[0], options.in_channels)
    return chain_features(features, (5, 12, 22, 32, 42, 43), options, (1, 2, 4, 8, 16, 32))
