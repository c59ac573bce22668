"""The frame of the nets of segmentation-models-pytorch: encoder, decoder, segmentation head.

Attribute names are that library's, so its state dicts load unchanged. Other than there, any input
size is taken: decoders resize to the size of a feature map and the head to that of the input. For
sizes that the strides divide both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.zoo.encoders.encoder import Encoder


class Decoder(nn.Module):
    """Takes the encoder's maps, finest first, and the input size; returns features (N, C, h, w)."""

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return the decoded features."""
        raise NotImplementedError


class EncoderDecoder(nn.Module):
    """Encoder, decoder and a convolution to K channels, resized with align_corners=True."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        out_channels: int,
        num_classes: int,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        head = nn.Conv2d(out_channels, num_classes, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(head.weight)
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        self.segmentation_head = nn.Sequential(head)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        size = x.shape[-2:]
        logits = self.segmentation_head(self.decoder(self.encoder(x), size))
        return {"out": F.interpolate(logits, size=size, mode="bilinear", align_corners=True)}


def initialize_decoder(module: nn.Module) -> None:
    """Initialise a decoder as that library does: He uniform convolutions, Xavier linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
