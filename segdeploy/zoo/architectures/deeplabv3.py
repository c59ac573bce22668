"""DeepLabV3 on ResNet-50/101 and a dilated MobileNetV3, in torchvision's layout.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. The
rates stay 12, 24, 36 at output stride 16, as in torchvision. Unlike there, the auxiliary head runs
in training only: it costs time and changes nothing in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.architectures.fcn import HeadsOnEncoder
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.encoders.mobilenet_v3 import build_low_high
from segdeploy.zoo.spec import ModelSpec

prepare_torchvision()
from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # noqa: E402
from torchvision.models.segmentation.fcn import FCNHead  # noqa: E402


def _build_mobilenet(num_classes: int, in_channels: int = 3) -> HeadsOnEncoder:
    backbone = build_low_high("mobilenet_v3_large", in_channels)
    return _with_heads(backbone, num_classes)


def _build_resnet(num_classes: int, in_channels: int = 3, *, encoder: str) -> HeadsOnEncoder:
    backbone = create_encoder(
        encoder, in_channels=in_channels, output_stride=8, is_first_dilated=False
    )
    return _with_heads(backbone, num_classes)


def _with_heads(backbone: Encoder, num_classes: int) -> HeadsOnEncoder:
    before, deepest = backbone.channels[-2:]
    return HeadsOnEncoder(backbone, DeepLabHead(deepest, num_classes), FCNHead(before, num_classes))


def _spec(encoder: str, build: Callable[..., nn.Module], output_stride: int) -> ModelSpec:
    return ModelSpec(
        name=f"deeplabv3_{encoder}",
        build=build,
        output_stride=output_stride,
        source="arXiv:1706.05587",
        family="torchvision",
        encoder=encoder,
    )


DEEPLABV3_MOBILENET_V3_LARGE = _spec("mobilenet_v3_large", _build_mobilenet, 16)
DEEPLABV3_RESNET50 = _spec("resnet50", partial(_build_resnet, encoder="resnet50"), 8)
DEEPLABV3_RESNET101 = _spec("resnet101", partial(_build_resnet, encoder="resnet101"), 8)
