"""Vision transformers of timm, for decoders that take maps of one stride and class tokens.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020. The net is kept as `model`,
whole, as segmentation-models-pytorch keeps it; its classifier and whatever else no map depends on
is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError
from segdeploy.zoo.encoders.timm import require_timm_net

_NUM_MAPS = 4


class ViTEncoder(nn.Module):
    """Gives the maps behind four blocks, evenly spaced, and the tokens in front of the pixels'.

    `channels` and `strides` are those of the maps: a plain transformer has one stride, its patch
    size. The sides of the input must be multiples of the largest.
    """

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        self.model = _create(name, in_channels)
        num_blocks = len(self.model.feature_info)
        self._blocks = [num_blocks * i // _NUM_MAPS - 1 for i in range(1, _NUM_MAPS + 1)]
        taps = [self.model.feature_info[i] for i in self._blocks]
        self.channels = tuple(int(tap["num_chs"]) for tap in taps)
        self.strides = tuple(int(tap["reduction"]) for tap in taps)
        self.num_prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        self._freeze_idle(name, in_channels)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return (map (N, C, H/s, W/s), prefix tokens (N, T, C) or None), first block first."""
        options = {"return_prefix_tokens": True} if self.num_prefix_tokens else {}
        found = self.model.forward_intermediates(
            x, indices=self._blocks, intermediates_only=True, **options
        )
        return [item if isinstance(item, tuple) else (item, None) for item in found]

    def _freeze_idle(self, name: str, in_channels: int) -> None:
        """Freeze what timm itself would prune from a net that gives only these maps."""
        with torch.device("meta"):
            pruned = _create(name, in_channels)
        pruned.prune_intermediate_layers(self._blocks, prune_norm=True, prune_head=True)
        used = {key for key, _ in pruned.named_parameters()}
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(key in used)


def _create(name: str, in_channels: int) -> Any:
    """Return timm's net `name`, without its weights, for any image size.

    Raises:
        BackendUnavailableError: If timm is not installed.
        UnknownNameError: If timm has no such net.
        ConfigError: If the net takes one size only, gives no maps, or has no such tag.
    """
    timm = require_timm_net(name)
    try:
        model = timm.create_model(
            name, pretrained=False, in_chans=in_channels, dynamic_img_size=True
        )
    except (RuntimeError, TypeError) as error:  # An unknown tag, or another kind of net.
        raise ConfigError(
            f"timm's {name} is no vision transformer of any image size: {error}",
            hint="For example timm/vit_base_patch16_224.augreg_in21k.",
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"timm's {name} gives no maps of its blocks.")
    return model
