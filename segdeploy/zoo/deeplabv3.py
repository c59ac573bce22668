"""DeepLabV3 on a dilated MobileNetV3, in torchvision's layout.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. The
rates stay 12, 24, 36 at output stride 16, as in torchvision. Unlike there, the auxiliary head runs
in training only: it costs time and changes nothing in evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.spec import ModelSpec
from segdeploy.zoo.taps import FeatureTaps, stage_indices

prepare_torchvision()
from torchvision.models import mobilenet_v3_large  # noqa: E402
from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # noqa: E402
from torchvision.models.segmentation.fcn import FCNHead  # noqa: E402


class DeepLabV3(nn.Module):
    """Backbone with maps `out` and `aux`, a main head and a training-only auxiliary head."""

    def __init__(
        self, backbone: FeatureTaps, classifier: nn.Module, aux_classifier: nn.Module
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)}, in training also "aux", of (N, 3, H, W)."""
        features = self.backbone(x)
        size = x.shape[-2:]
        result = {"out": _upsample(self.classifier(features["out"]), size)}
        if self.training:
            result["aux"] = _upsample(self.aux_classifier(features["aux"]), size)
        return result


def _upsample(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _build(num_classes: int) -> DeepLabV3:
    features = mobilenet_v3_large(weights=None, dilated=True).features
    stages = stage_indices(features)
    out, aux = stages[-1], stages[-4]  # stride 16 with 960 channels, stride 8 with 40
    return DeepLabV3(
        FeatureTaps(features, {str(out): "out", str(aux): "aux"}),
        DeepLabHead(features[out].out_channels, num_classes),
        FCNHead(features[aux].out_channels, num_classes),
    )


DEEPLABV3_MOBILENET_V3_LARGE = ModelSpec(
    name="deeplabv3_mobilenet_v3_large",
    build=_build,
    output_stride=16,
    source="arXiv:1706.05587",
)
