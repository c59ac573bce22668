"""A torchvision backbone that returns some of its feature maps.

torchvision's own getter is private; ours keeps its state-dict layout (children under their own
names), so that official weights load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn


class FeatureTaps(nn.ModuleDict):
    """Runs the children of `backbone` in order up to the last tap.

    Args:
        backbone: A module whose children form a chain.
        taps: Child name to output name.
    """

    def __init__(self, backbone: nn.Module, taps: dict[str, str]) -> None:
        children = dict(backbone.named_children())
        last = max(list(children).index(name) for name in taps)
        super().__init__(dict(list(children.items())[: last + 1]))
        self.taps = dict(taps)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the tapped feature maps by output name."""
        found = {}
        for name, child in self.items():
            x = child(x)
            if name in self.taps:
                found[self.taps[name]] = x
        return found


def stage_indices(features: nn.Sequential) -> list[int]:
    """Return the indices in a MobileNetV3's features where a stage (C1, C2, ...) begins.

    torchvision marks the strided blocks (`_is_cn`); the first and last convolution count as well.
    """
    strided = [i for i, block in enumerate(features) if getattr(block, "_is_cn", False)]
    return [0, *strided, len(features) - 1]
