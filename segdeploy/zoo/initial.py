"""Starting weights of a model: whole models, or encoders of other libraries.

Tensors are found under the names of torchvision, timm and segmentation-models-pytorch. Those of
another shape (a head of another class count) are re-made, that is, keep their fresh initialisation.
The first convolution is adapted to another number of input channels, as in
segmentation-models-pytorch. What was loaded, re-made, adapted and skipped is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import CheckpointError
from segdeploy.zoo.keys import Match, encoder_name, few, match_keys, shapes_of

# Of the encoder's tensors. MobileNetV3 small has 19 % of large's by chance; the right file has all.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class InitReport:
    """Which keys of the model were loaded, adapted, re-made, and which of the file skipped."""

    rewriting: str
    loaded: list[str]
    remade: list[str]
    skipped: list[str]
    adapted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lists = (
            ("adapted to the input channels", self.adapted),
            ("re-made", self.remade),
            ("skipped of the file", self.skipped),
        )
        told = [f"{what} {few(keys)}" for what, keys in lists if keys]
        return "; ".join([f"loaded {len(self.loaded)} tensors ({self.rewriting})", *told])

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest keeps; the loaded keys are only counted."""
        return {
            "rewriting": self.rewriting,
            "num_loaded": len(self.loaded),
            "adapted": self.adapted,
            "remade": self.remade,
            "skipped": self.skipped,
        }


def load_initial_weights(module: nn.Module, weights: dict[str, Tensor], source: Path) -> InitReport:
    """Copy every tensor that fits into `module` and tell what did not.

    Raises:
        CheckpointError: If hardly any fits: these are weights of another model.
    """
    own = module.state_dict()
    match = match_keys(shapes_of(own), shapes_of(weights))
    named = {mine: weights[key] for mine, key in match.keys.items()}
    fitting = {k: tensor for k, tensor in named.items() if _fits(tensor, own[k])}
    _check_share(module, set(fitting), match, weights, source)
    adapted = _adapted(own, named)
    module.load_state_dict(fitting | adapted, strict=False)
    known = set(match.keys.values())
    return InitReport(
        rewriting=str(match),
        loaded=list(fitting),
        adapted=list(adapted),
        remade=[k for k in own if k not in fitting and k not in adapted],
        skipped=[k for k in weights if k not in known],
    )


def _fits(tensor: Tensor, own: Tensor) -> bool:
    """Whole numbers in place of weights are of a quantized model: they do not fit."""
    is_same_kind = tensor.is_floating_point() == own.is_floating_point()
    return tensor.shape == own.shape and is_same_kind


def _check_share(
    module: nn.Module, fitting: set[str], match: Match, weights: dict[str, Tensor], source: Path
) -> None:
    encoder = encoder_name(module)
    part = [k for k in module.state_dict() if encoder is None or k.startswith(f"{encoder}.")]
    num = len(fitting.intersection(part))
    if num and num >= _LEAST_SHARE * len(part):
        return
    what = "the model" if encoder is None else "the model's encoder"
    raise CheckpointError(
        f"{source} does not fit: it has {num} of the {len(part)} tensors of {what} (at best, with "
        f"{match}).",
        hint=f"The model has keys such as {few(part)}; the file has {few(list(weights))}.",
    )


def _adapted(own: dict[str, Tensor], named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first convolution, if only its number of input channels differs."""
    first = next((k for k, tensor in own.items() if tensor.dim() == 4), None)
    if first is None or first not in named or named[first].dim() != 4:
        return {}
    wanted, found = own[first], named[first]
    is_other = found.shape[1] != wanted.shape[1] and found[:, 0].shape == wanted[:, 0].shape
    return {first: adapt_channels(found, wanted.shape[1])} if is_other else {}


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Return a convolution's weight (O, C, h, w) for another C, with outputs of the same size.

    One channel gets the sum, as if grey were given to all; n channels get the old ones in turn,
    times C / n.
    """
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    old = weight.shape[1]
    return weight[:, torch.arange(in_channels) % old] * (old / in_channels)
