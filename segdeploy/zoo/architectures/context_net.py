"""The frame of the nets of PyTorch-Encoding and FastFCN: encoder, optional neck, head, auxiliary.

Attribute names inside head, neck and auxiliary head are those systems', so these parts of their
state dicts load unchanged; the encoder (there `pretrained`) keeps the names of its own library.
Every resizing aligns the corners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from segdeploy.zoo.blocks.conv import ConvBnReLU
from segdeploy.zoo.blocks.resize import resize_aligned
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder
from segdeploy.zoo.spec import Architecture

_DROPOUT = 0.1


class Head(nn.Module):
    """Takes maps, finest first; returns {"out": logits (N, K, h, w)}, maybe "se" (N, K) too."""

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the logits by name."""
        raise NotImplementedError


class FCNHead(Head):
    """A 3x3 convolution of the last map to a quarter of its channels, then 1x1 to K."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        inner = channels // 4
        self.conv5 = nn.Sequential(
            *ConvBnReLU(channels, inner, 3, padding=1), *classifier(inner, num_classes)
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, h, w)}."""
        return {"out": self.conv5(maps[-1])}


class ContextNet(nn.Module):
    """A head on the maps of an encoder.

    Args:
        backbone: Gives the maps.
        head: Gives the logits.
        auxlayer: Gives further logits in training, from the map before the deepest.
        jpu: Takes the maps and returns them with another deepest one, for the head.
    """

    def __init__(
        self,
        backbone: Encoder,
        head: Head,
        auxlayer: Head | None = None,
        jpu: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.jpu = nn.Identity() if jpu is None else jpu
        self.head = head
        self.auxlayer = auxlayer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)}, in training "aux" and "se" where there are such."""
        maps = self.backbone(x)
        logits = self.head(self.jpu(maps))
        if self.auxlayer is not None and self.training:
            logits["aux"] = self.auxlayer(maps[:-1])["out"]
        size = x.shape[-2:]
        return {k: v if k == "se" else resize_aligned(v, size) for k, v in logits.items()}


def classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Return dropout and the convolution to K channels."""
    return nn.Sequential(nn.Dropout(_DROPOUT), nn.Conv2d(channels, num_classes, 1))


MakeHead = Callable[[Sequence[int], int], Head]


def build_dilated(
    encoder: str, num_classes: int, in_channels: int = 3, *, make_head: MakeHead
) -> ContextNet:
    """Return a head, made of the channels of the maps and K, on `encoder` at output stride 8."""
    backbone = create_encoder(
        encoder, in_channels=in_channels, output_stride=8, is_first_dilated=False
    )
    auxlayer = FCNHead(backbone.channels[-2], num_classes)
    return ContextNet(backbone, make_head(backbone.channels, num_classes), auxlayer)


def build_pyramid(
    encoder: str, num_classes: int, in_channels: int = 3, *, make_head: MakeHead
) -> ContextNet:
    """Return a head on the four deepest maps of `encoder`, undilated; no auxiliary head."""
    backbone = create_encoder(encoder, in_channels=in_channels)
    return ContextNet(backbone, make_head(backbone.channels[-4:], num_classes))


def dilated_architecture(name: str, make_head: MakeHead, source: str) -> Architecture:
    """Return the architecture of `build_dilated`."""
    return _architecture(name, partial(build_dilated, make_head=make_head), 8, source)


def pyramid_architecture(name: str, make_head: MakeHead, source: str) -> Architecture:
    """Return the architecture of `build_pyramid`."""
    return _architecture(name, partial(build_pyramid, make_head=make_head), 4, source)


def _architecture(
    name: str, build: Callable[..., ContextNet], output_stride: int, source: str
) -> Architecture:
    return Architecture(name, build, output_stride, source, family="PE", input_size=(480, 480))
