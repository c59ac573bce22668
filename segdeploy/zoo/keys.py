"""Keys of state dicts: comparing them, and finding one library's tensors under another's names.

Libraries put the same encoder under other prefixes: torchvision's classifier has `layer1.0...`, its
segmentation nets `backbone.layer1.0...`, segmentation-models-pytorch `encoder.layer1.0...`. One
rewriting (a prefix taken away, another put in front) serves a whole file; the one with most fitting
tensors wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Shapes = Mapping[str, torch.Size]
_COUNTER = "num_batches_tracked"  # Old files lack it; it decides nothing in evaluation.
_SHOWN = 4


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of every tensor."""
    return {key: tensor.shape for key, tensor in state.items()}


def encoder_name(module: nn.Module) -> str | None:
    """Return the name of a model's child that is its encoder, None if it has none."""
    children = dict(module.named_children())
    return next((name for name in ("encoder", "backbone") if name in children), None)


@dataclass(frozen=True)
class Difference:
    """What stands between a state dict and a model; false if it fits."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshaped),
        )
        return "; ".join(f"{len(keys)} {what}: {few(keys)}" for what, keys in parts if keys)


def difference(wanted: Shapes, found: Shapes) -> Difference:
    """Return how the keys and shapes `found` differ from those `wanted`."""
    return Difference(
        missing=[k for k in wanted if k not in found and not k.endswith(_COUNTER)],
        unexpected=[k for k in found if k not in wanted],
        misshaped=[
            f"{k} (found {_spoken(found[k])}, wanted {_spoken(shape)})"
            for k, shape in wanted.items()
            if k in found and found[k] != shape
        ],
    )


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _spoken(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


@dataclass(frozen=True)
class Match:
    """The best rewriting: `keys` maps the model's keys to the file's, whatever their shapes."""

    stripped: str
    added: str
    keys: dict[str, str]
    num_fitting: int

    def __str__(self) -> str:
        if not self.stripped and not self.added:
            return "keys as they are"
        return f"keys '{self.stripped}...' as '{self.added}...'"


# What a training loop puts around a whole model.
WRAPPERS = ("", "model.", "net.")
# Where libraries keep an encoder.
_PLACES = (
    "encoder.", "backbone.", "features.", "encoder.model.", "encoder.features.",
    "backbone.model.", "backbone.features.", "model.encoder.", "model.backbone.",
)  # fmt: skip
STRIPPED = (*WRAPPERS, *_PLACES)
ADDED = ("", *_PLACES)


def match_keys(
    wanted: Shapes,
    found: Shapes,
    *,
    stripped: Iterable[str] = STRIPPED,
    added: Iterable[str] = ADDED,
) -> Match:
    """Return the rewriting of `found` under which most tensors have their wanted shape."""
    own = {_canonical(key): key for key in wanted}
    added = tuple(added)
    best = Match("", "", {}, -1)
    for strip in stripped:
        inner = {_canonical(key.removeprefix(strip)): key for key in found if key.startswith(strip)}
        for add in added:
            keys = {own[add + k]: key for k, key in inner.items() if add + k in own}
            num = sum(found[key] == wanted[mine] for mine, key in keys.items())
            if num > best.num_fitting:
                best = Match(strip, add, keys, num)
    return best


def _canonical(key: str) -> str:
    """Undo how timm names the stages of a net that gives features: `stages_0` for `stages.0`."""
    return re.sub(r"(^|\.)(stages|stem|blocks|layers)_(\d+)\.", r"\1\2.\3.", key)


def layout_hint(keys: Iterable[str]) -> str:
    """Return what to try for keys of a known library, else ""."""
    tops = {key.partition(".")[0] for key in keys}
    if "segmentation_head" in tops:
        return (
            "The keys look like those of segmentation_models_pytorch: give its architecture and "
            "encoder as --model, e.g. unet_resnet34 (timm's as unet_timm/NAME). Where that name is "
            "another system's net, write unet_smp_ENCODER or deeplabv3_smp_ENCODER."
        )
    if {"backbone", "classifier"} <= tops:
        return (
            "The keys look like those of torchvision's segmentation nets: --model "
            "deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet_v3_large, ..."
        )
    if {"stage1", "stage1d"} <= tops:
        return "The keys look like those of U-2-Net: --model u2net or u2net_lite."
    if tops & {"fc", "head", "classifier"}:
        return "These look like weights of a classifier: start from them with train --init."
    return ""
