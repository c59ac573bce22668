"""Context encoding: residuals to learned codewords say what the scene is and gate the channels.

Source: Zhang et al., "Context Encoding for Semantic Segmentation", 2018, section 2.1; the layer
itself: Zhang et al., "Deep TEN: Texture Encoding Network", 2017. Names are PyTorch-Encoding's,
whose custom operators these few tensor operations replace.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_CODES = 32


class Encoding(nn.Module):
    """Soft assignment of every pixel to K codewords, and the sum of the residuals of each.

    Neither distances nor residuals are formed pixel by codeword by channel, which would take K
    times the memory of the input: both are matrix products. Pixels and codewords are taken relative
    to the mean codeword first, which changes neither, but leaves less to cancel.
    """

    def __init__(self, channels: int, num_codes: int = NUM_CODES) -> None:
        super().__init__()
        bound = (num_codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K, C) of (N, C, H, W); computed in float32 under autocast."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x.float())
        centre = self.codewords.mean(0)
        codewords = self.codewords - centre
        pixels = x.flatten(2) - centre[:, None]  # (N, C, P)
        weights = self._distances(pixels, codewords).softmax(dim=1)
        return weights @ pixels.mT - weights.sum(2, keepdim=True) * codewords

    def _distances(self, pixels: Tensor, codewords: Tensor) -> Tensor:
        """Return s_k |x_p - c_k|^2, (N, K, P), up to a constant for each pixel.

        The squares |x_p|^2 dwarf what tells the codewords apart. The constant takes them out of
        the largest scale, whose codeword mostly wins, so that they do not round it away. They are
        multiplied last, as means, so that half precision does not overflow.
        """
        scale = self.scale[:, None]
        below = (scale - scale.detach().amax(0)) * pixels.shape[1]
        codes = codewords.square().sum(1, keepdim=True) - 2 * (codewords @ pixels)
        return below * pixels.square().mean(1, keepdim=True) + scale * codes


class _MeanOfCodes(nn.Module):
    """Maps (N, K, C) to (N, C)."""

    def forward(self, codes: Tensor) -> Tensor:
        return codes.mean(1)


class EncModule(nn.Module):
    """Gates the channels by the encoded scene.

    Args:
        channels: Of the features.
        num_classes: K, for logits in training that say from the scene which classes are present;
            None for no such logits.
    """

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            Encoding(channels),
            nn.BatchNorm1d(NUM_CODES),  # Over batch and channels of each code.
            nn.ReLU(inplace=True),
            _MeanOfCodes(),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (N, C, H, W) of (N, C, H, W), and in training {"se": logits (N, K)}."""
        scene = self.encoding(x)
        gate = self.fc(scene)[:, :, None, None]
        gated = torch.relu(x + x * gate)
        if self.selayer is None or not self.training:
            return gated, {}
        return gated, {"se": self.selayer(scene)}
