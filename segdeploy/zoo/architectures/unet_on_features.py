"""WZ's UNets on the features of a torchvision classifier: MobileNetV3-Large and VGG16-BN.

Source: Ronneberger et al., "U-Net", 2015. Names are those of WZ's state dicts. Sizes that strides
do not divide: VGG pools round down, so a row or column is padded as in `unet`; MobileNetV3 rounds
up, so one is cut off, at the bottom and right too.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.architectures.unet import Up
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions
from segdeploy.zoo.spec import ModelSpec

# Index of the last module of each stage; what the encoder of that name has behind it is left out.
_TAPS = {"mobilenet_v3_large": (1, 3, 6, 12, 15), "vgg16_bn": (5, 12, 22, 32, 42)}


class FeatureUNet(nn.Module):
    """Up to the finest of five maps, then to the input size where that is coarser.

    Args:
        backbone: Gives the maps, finest first.
        num_classes: K.
        rounds_up: Whether the backbone rounds odd sizes up.
    """

    def __init__(self, backbone: ChainEncoder, num_classes: int, *, rounds_up: bool) -> None:
        super().__init__()
        self.backbone = backbone
        c0, c1, c2, c3, c4 = backbone.channels
        up = partial(Up, bilinear=True, rounds_up=rounds_up)
        self.up1 = up(c4 + c3, c3)
        self.up2 = up(c3 + c2, c2)
        self.up3 = up(c2 + c1, c1)
        self.up4 = up(c1 + c0, c0)
        self.conv = nn.Sequential(nn.Conv2d(c0, num_classes, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        x0, x1, x2, x3, x4 = self.backbone(x)
        logits = self.conv(self.up4(self.up3(self.up2(self.up1(x4, x3), x2), x1), x0))
        if self.backbone.strides[0] > 1:
            size = x.shape[-2:]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return {"out": logits}


def _build(num_classes: int, in_channels: int = 3, *, encoder: str, rounds_up: bool) -> FeatureUNet:
    return FeatureUNet(_backbone(encoder, in_channels), num_classes, rounds_up=rounds_up)


def _backbone(encoder: str, in_channels: int) -> ChainEncoder:
    """The features of `encoder` up to the last tap, under their own indices as names."""
    whole = create_encoder(encoder, in_channels=in_channels)
    ends = [0, *(tap + 1 for tap in _TAPS[encoder])]
    stages = [[str(i) for i in range(begin, end)] for begin, end in pairwise(ends)]
    children = dict(whole.get_submodule("features").named_children())
    used = {name: children[name] for stage in stages for name in stage}
    options = EncoderOptions(in_channels)
    return ChainEncoder(used, stages, whole.channels[:5], whole.strides[:5], options)


def _spec(encoder: str, *, output_stride: int, rounds_up: bool) -> ModelSpec:
    return ModelSpec(
        name=f"unet_{encoder}",
        build=partial(_build, encoder=encoder, rounds_up=rounds_up),
        output_stride=output_stride,
        source="arXiv:1505.04597",
        family="WZ",
        input_size=(480, 480),
        encoder=encoder,
    )


UNET_MOBILENET_V3_LARGE = _spec("mobilenet_v3_large", output_stride=2, rounds_up=True)
UNET_VGG16_BN = _spec("vgg16_bn", output_stride=1, rounds_up=False)
