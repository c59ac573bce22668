"""LRASPP: lite reduced ASPP on MobileNetV3.

Source: Howard et al., "Searching for MobileNetV3", 2019, section 6.4 and figure 10. Layout, names
and initialisation are torchvision's, whose own head is used, so its weights load unchanged.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.encoders.mobilenet_v3 import build_low_high
from segdeploy.zoo.spec import ModelSpec

prepare_torchvision()
from torchvision.models.segmentation.lraspp import LRASPPHead  # noqa: E402

_INTER_CHANNELS = 128


class LRASPP(nn.Module):
    """Backbone with a map of stride 8 and one of stride 16, and torchvision's head."""

    def __init__(self, backbone: Encoder, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = LRASPPHead(*backbone.channels, num_classes, _INTER_CHANNELS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        low, high = self.backbone(x)
        logits = self.classifier({"low": low, "high": high})  # (N, K, H/8, W/8)
        size = x.shape[-2:]
        return {"out": F.interpolate(logits, size=size, mode="bilinear", align_corners=False)}


def _build(num_classes: int, in_channels: int = 3, *, encoder: str) -> LRASPP:
    return LRASPP(build_low_high(encoder, in_channels), num_classes)


def _spec(encoder: str) -> ModelSpec:
    return ModelSpec(
        name=f"lraspp_{encoder}",
        build=partial(_build, encoder=encoder),
        output_stride=8,
        source="arXiv:1905.02244",
        family="torchvision",
        encoder=encoder,
    )


LRASPP_MOBILENET_V3_LARGE = _spec("mobilenet_v3_large")
LRASPP_MOBILENET_V3_SMALL = _spec("mobilenet_v3_small")
