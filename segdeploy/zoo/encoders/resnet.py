"""ResNet and ResNeXt, torchvision's own modules.

Source: He et al., "Deep Residual Learning", 2015, with the stride on the 3x3 convolution (v1.5);
Xie et al., "Aggregated Residual Transformations", 2016.
"""

from __future__ import annotations

from functools import partial

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions, with_in_channels

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402

_STAGES = (("conv1", "bn1", "relu"), ("maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))


def build_resnet(options: EncoderOptions, name: str) -> ChainEncoder:
    """Return torchvision's `name` as an encoder."""
    net = get_model(name, weights=None)
    net.conv1 = with_in_channels(net.conv1, options.in_channels)
    children = {k: v for k, v in net.named_children() if k not in {"avgpool", "fc"}}
    width = net.fc.in_features  # Of the deepest map; every stage before has half of it.
    channels = (64, width // 8, width // 4, width // 2, width)
    return ChainEncoder(children, _STAGES, channels, (2, 4, 8, 16, 32), options)


RESNET18 = partial(build_resnet, name="resnet18")
RESNET34 = partial(build_resnet, name="resnet34")
RESNET50 = partial(build_resnet, name="resnet50")
RESNET101 = partial(build_resnet, name="resnet101")
RESNET152 = partial(build_resnet, name="resnet152")
RESNEXT50_32X4D = partial(build_resnet, name="resnext50_32x4d")
RESNEXT101_32X8D = partial(build_resnet, name="resnext101_32x8d")
