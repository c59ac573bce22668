"""What the U-shaped nets share: five steps up from stride 32, each to the size of a skip.

Encoders without a map of stride 2 (transformers) have no skip there. The size at that step then
lies between the map of stride 4 and the input such that it is twice both of them to one pixel,
which resizing needs (see `segdeploy.zoo.blocks.up_conv`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError
from segdeploy.zoo.architectures.encoder_decoder import (
    Decoder,
    EncoderDecoder,
    initialize_decoder,
)
from segdeploy.zoo.encoders import create_encoder
from segdeploy.zoo.encoders.encoder import Encoder

_SKIP_STRIDES = (16, 8, 4, 2)
Step = tuple[Sequence[int], Tensor | None]  # Size (H, W) and skip of one upsampling.


def create_pyramid(encoder: str, in_channels: int, *, needed_by: str = "") -> Encoder:
    """Return an encoder with maps of strides 4, 8, 16 and 32, and 2 where `needed_by` a net.

    Raises:
        ConfigError: If it has other strides.
    """
    net = create_encoder(encoder, in_channels=in_channels)
    strides = [stride for stride in net.strides if stride > 1]
    if strides not in ([2, 4, 8, 16, 32], [4, 8, 16, 32]):
        raise ConfigError(
            f"A decoder needs one map each of strides 2 or 4 to 32; '{encoder}' has {strides}."
        )
    if needed_by and 2 not in strides:
        raise ConfigError(
            f"{needed_by} joins the encoder's map of stride 2, and '{encoder}' has none: its "
            "finest map has stride 4.",
            hint=f"Take unet_{encoder}, manet_{encoder} or fpn_{encoder}, or another encoder.",
        )
    return net


def level_channels(encoder: Encoder) -> tuple[int, list[int]]:
    """Return the channels at stride 32, and at 16, 8, 4, 2 (0 where there is no map)."""
    return encoder.channels_at(32), [encoder.channels_at(stride) for stride in _SKIP_STRIDES]


class UpChain(Decoder):
    """Takes the deepest map through `center` and then up, one block(x, size, skip) per step."""

    def __init__(
        self, encoder: Encoder, blocks: Iterable[nn.Module], center: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.num_skips = sum(stride in _SKIP_STRIDES for stride in encoder.strides)
        self.center = center or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        initialize_decoder(self)

    def forward(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Return the features (N, C, H, W) at the input size."""
        x: Tensor = self.center(maps[-1])
        for block, step in zip(self.blocks, self._steps(maps, size), strict=True):
            x = block(x, *step)
        return x

    def _steps(self, maps: Sequence[Tensor], size: torch.Size) -> list[Step]:
        skips = maps[-2::-1][: self.num_skips]
        steps: list[Step] = [(skip.shape[-2:], skip) for skip in skips]
        if self.num_skips < len(_SKIP_STRIDES):
            quarter = skips[-1].shape[-2:]
            # The integer nearest to (side + 2n) / 3: 2n if the strides divide the side.
            half = [(side + 2 * n + 1) // 3 for side, n in zip(size, quarter, strict=True)]
            steps.append((half, None))
        return [*steps, (size, None)]


class UShapedNet(EncoderDecoder):
    """A net whose decoder ends at the input size, so that its logits are not resized."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        return {"out": self.segmentation_head(self.decoder(self.encoder(x), x.shape[-2:]))}
