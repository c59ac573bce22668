"""Encoders of timm, by its names: `timm/resnest50d`, `timm/convnext_tiny`.

Any net of timm that gives a pyramid of maps is one. Its net is kept as `model`, the layout of the
`tu-` encoders of segmentation-models-pytorch. Stages deeper than asked for are not built, or are
frozen where timm builds them nevertheless.

Dilation is timm's own rule: the first block of a dilated stage keeps the dilation before. In
ResNet-D and ResNeSt that block also differs from the published segmentation nets (Zhang et al.,
"ResNeSt", 2020); see `_undo_blur`.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.errors import BackendUnavailableError, ConfigError, UnknownNameError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import Encoder, EncoderOptions, maps_within

_PROBE_SIZE = 65, 97  # A net that takes this and the smallest takes any size from 32 on.
_MIN_SIDE = 32
_WHOLE_SIDE = 32  # Sides are padded to a multiple of it for nets that need it.


class TimmEncoder(Encoder):
    """A feature net of timm, made to take any size and to give (N, C, H, W).

    Where the net fails on sides that are no multiple of its strides (HRNet, DLA), the image is
    padded with zeros at the bottom and right, and the maps are cut: for other sizes nothing
    changes.

    Args:
        model: The net, made with `features_only`.
        in_channels: Channels of its input.
    """

    def __init__(self, model: Any, in_channels: int) -> None:
        super().__init__()
        self.model = model
        self._is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self._is_padded = False
        self.channels = tuple(model.feature_info.channels())
        self.strides = tuple(model.feature_info.reduction())
        self._try(in_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps."""
        maps: list[Tensor] = self.model(_whole(x) if self._is_padded else x)
        if self._is_channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if self._is_padded:
            maps = [_part(m, x, s) for m, s in zip(maps, self.strides, strict=True)]
        return maps

    def _try(self, in_channels: int) -> None:
        """Run the net: find out if it needs padding, freeze what no map depends on."""
        parameters = list(self.parameters())
        image = torch.zeros(1, in_channels, *_PROBE_SIZE, device=parameters[0].device)
        self.eval()
        with torch.enable_grad():
            try:
                maps = self(image)
            except (AssertionError, RuntimeError):
                self._is_padded = True
                maps = self(image)
            ones = [torch.ones_like(m) for m in maps]
            grads = torch.autograd.grad(maps, parameters, ones, allow_unused=True)
        with torch.no_grad():
            self(image[..., :_MIN_SIDE, :_MIN_SIDE])
        self.train()
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.requires_grad_(grad is not None)


def build_timm(options: EncoderOptions, name: str) -> TimmEncoder:
    """Return timm's net `name`, without its weights, as an encoder.

    Raises:
        BackendUnavailableError: If timm is not installed.
        UnknownNameError: If timm has no such net; the hint lists the nearest.
        ConfigError: If the net gives no pyramid of maps, cannot be dilated, or takes one size only.
    """
    timm = require_timm_net(name)
    try:
        return _build(timm, options, name)
    except ConfigError:
        raise
    except Exception as error:  # timm's nets refuse what they cannot do in many ways.
        dilated = f" of output stride {options.output_stride}" if options.output_stride < 32 else ""
        raise ConfigError(
            f"timm's {name} cannot be an encoder{dilated}: {type(error).__name__}: {error}",
            hint="Many of its nets cannot be dilated; take another, or output stride 32."
            if dilated
            else "",
        ) from error


def require_timm_net(name: str) -> ModuleType:
    """Import and return timm, which must know the net `name`; else as `require_timm`.

    Raises:
        UnknownNameError: If timm has no such net; the hint lists the nearest.
    """
    timm = require_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"Did you mean timm/{' or timm/'.join(near)}?" if near else ""
        raise UnknownNameError(f"Unknown encoder 'timm/{name}'.", hint=hint)
    return timm


def require_timm() -> ModuleType:
    """Import and return timm.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise BackendUnavailableError(
            "This needs timm, which is not installed.",
            hint="Install it: pip install 'segdeploy[timm]'",
        )
    prepare_torchvision()
    import timm

    return timm


def _build(timm: ModuleType, options: EncoderOptions, name: str) -> TimmEncoder:
    probe = _probe(timm, name)
    rows = [row for row in probe.feature_info.info if row["module"]]  # Without: it is no map.
    strides = [row["reduction"] for row in rows]
    used = maps_within(strides, options.depth)
    _check_pyramid(name, strides[: len(used)])
    arguments: dict[str, Any] = {"out_indices": [rows[i]["index"] for i in used]}
    if options.output_stride < strides[used[-1]]:
        arguments["output_stride"] = options.output_stride
    if any(getattr(module, "strict_img_size", False) for module in probe.modules()):
        arguments["strict_img_size"] = False
    model = timm.create_model(
        name, pretrained=False, features_only=True, in_chans=options.in_channels, **arguments
    )
    if max(model.feature_info.reduction()) > options.output_stride:
        raise ConfigError(f"timm's {name} cannot be dilated.")
    for module in model.modules():
        if hasattr(module, "dynamic_img_pad"):  # Swin: its patches take any size then.
            module.dynamic_img_pad = True
    _undo_blur(model)
    return TimmEncoder(model, options.in_channels)


def _probe(timm: ModuleType, name: str) -> Any:
    """Return the net to look at; without memory where it can be built so."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, features_only=True)
    except RuntimeError:  # It computes with values while it is built.
        return timm.create_model(name, pretrained=False, features_only=True)


def _check_pyramid(name: str, strides: Sequence[int]) -> None:
    if strides[0] > 4 or any(deeper != 2 * stride for stride, deeper in pairwise(strides)):
        raise ConfigError(
            f"timm's {name} gives maps of strides {', '.join(map(str, strides))}; an encoder's "
            "begin at 1, 2 or 4 and double."
        )


def _undo_blur(model: nn.Module) -> None:
    """Give dilated first blocks of ResNet-D and ResNeSt the pooling of the published nets.

    There the shortcut is not pooled and the 3x3 average behind split attention stays, with stride
    1; timm averages the shortcut over 2x2 pixels and drops the other.
    """
    from timm.layers.pool2d_same import AvgPool2dSame
    from timm.models.resnest import ResNestBottleneck
    from timm.models.resnet import BasicBlock, Bottleneck

    pooled: list[str] = []
    for block in model.modules():
        if not isinstance(block, BasicBlock | Bottleneck | ResNestBottleneck):
            continue
        shortcut = block.downsample
        if not isinstance(shortcut, nn.Sequential):
            continue
        if isinstance(shortcut[0], AvgPool2dSame):
            shortcut[0] = nn.Identity()
            for name in pooled:
                setattr(block, name, nn.AvgPool2d(3, 1, padding=1))
        else:  # Of a stage with stride, before: where its first block pools.
            pooled = [n for n in ("avd_first", "avd_last") if getattr(block, n, None) is not None]


def _whole(x: Tensor) -> Tensor:
    height, width = ((_WHOLE_SIDE - side % _WHOLE_SIDE) % _WHOLE_SIDE for side in x.shape[-2:])
    return F.pad(x, [0, width, 0, height])


def _part(features: Tensor, image: Tensor, stride: int) -> Tensor:
    height, width = ((side + stride - 1) // stride for side in image.shape[-2:])
    return features[..., :height, :width]
