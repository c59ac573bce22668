"""DeepLabV3 in PyTorch-Encoding's form: on any encoder, with an auxiliary head, corners aligned.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. Names
inside the ASPP are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdeploy.zoo.architectures.context_net import Head, classifier, dilated_architecture
from segdeploy.zoo.blocks.aspp import ASPP
from segdeploy.zoo.blocks.conv import ConvBnReLU


class DeepLabV3Head(Head):
    """ASPP of the deepest map to an eighth of its channels, then 3x3 and 1x1 to K channels."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        inner = channels[-1] // 8
        self.aspp = ASPP(channels[-1], inner, is_separable=False)
        conv = ConvBnReLU(inner, inner, 3, padding=1)
        self.block = nn.Sequential(*conv, *classifier(inner, num_classes))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)}."""
        return {"out": self.block(self.aspp(maps[-1]))}


DEEPLABV3_PE = dilated_architecture("deeplabv3_pe", DeepLabV3Head, "arXiv:1706.05587")
