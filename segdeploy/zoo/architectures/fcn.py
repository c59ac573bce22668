"""FCN with an auxiliary head, in torchvision's layout, on any encoder at output stride 8.

Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2014. The auxiliary
head runs in training only: it costs time and changes nothing in evaluation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

prepare_torchvision()
from torchvision.models.segmentation.fcn import FCNHead  # noqa: E402


class HeadsOnEncoder(nn.Module):
    """A head on the deepest map and a training-only head on the one before."""

    def __init__(self, backbone: Encoder, classifier: nn.Module, aux_classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)}, in training also "aux", of (N, C, H, W)."""
        *_, before, deepest = self.backbone(x)
        heads = {"out": (self.classifier, deepest)}
        if self.training:
            heads["aux"] = (self.aux_classifier, before)
        return {
            name: F.interpolate(
                head(features), size=x.shape[-2:], mode="bilinear", align_corners=False
            )
            for name, (head, features) in heads.items()
        }


def build_fcn(encoder: str, num_classes: int, in_channels: int = 3) -> HeadsOnEncoder:
    """Return FCN on `encoder`."""
    backbone = create_encoder(
        encoder, in_channels=in_channels, output_stride=8, is_first_dilated=False
    )
    before, deepest = backbone.channels[-2:]
    return HeadsOnEncoder(backbone, FCNHead(deepest, num_classes), FCNHead(before, num_classes))


FCN = Architecture(
    name="fcn",
    build=build_fcn,
    output_stride=8,
    source="arXiv:1411.4038",
    family="torchvision",
    input_size=(520, 520),
)
