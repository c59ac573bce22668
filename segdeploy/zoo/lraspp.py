"""LRASPP: lite reduced ASPP on MobileNetV3.

Source: Howard et al., "Searching for MobileNetV3", 2019, section 6.4 and figure 10. Layout, names
and initialisation are torchvision's, whose own head is used, so its weights load unchanged.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.spec import ModelSpec
from segdeploy.zoo.taps import FeatureTaps, stage_indices

prepare_torchvision()
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small  # noqa: E402
from torchvision.models.segmentation.lraspp import LRASPPHead  # noqa: E402

_INTER_CHANNELS = 128


class LRASPP(nn.Module):
    """Backbone with a `low` (stride 8) and a `high` (stride 16) map, and torchvision's head."""

    def __init__(self, backbone: FeatureTaps, channels: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = LRASPPHead(channels[0], channels[1], num_classes, _INTER_CHANNELS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, 3, H, W)."""
        logits = self.classifier(self.backbone(x))  # (N, K, H/8, W/8)
        size = x.shape[-2:]
        return {"out": F.interpolate(logits, size=size, mode="bilinear", align_corners=False)}


def _build(num_classes: int, variant: Literal["large", "small"]) -> LRASPP:
    create = mobilenet_v3_large if variant == "large" else mobilenet_v3_small
    features = create(weights=None, dilated=True).features
    stages = stage_indices(features)
    low, high = stages[-4], stages[-1]  # C2 (stride 8) and the last map (stride 16)
    channels = features[low].out_channels, features[high].out_channels
    taps = FeatureTaps(features, {str(low): "low", str(high): "high"})
    return LRASPP(taps, channels, num_classes)


LRASPP_MOBILENET_V3_LARGE = ModelSpec(
    name="lraspp_mobilenet_v3_large",
    build=partial(_build, variant="large"),
    output_stride=8,
    source="arXiv:1905.02244",
)
LRASPP_MOBILENET_V3_SMALL = ModelSpec(
    name="lraspp_mobilenet_v3_small",
    build=partial(_build, variant="small"),
    output_stride=8,
    source="arXiv:1905.02244",
)
