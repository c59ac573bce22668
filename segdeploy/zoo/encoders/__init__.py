"""Encoders by name: `create_encoder("resnet34")`, `create_encoder("timm/resnest50d")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from segdeploy.core.errors import ConfigError
from segdeploy.core.registry import Registry

if TYPE_CHECKING:
    from segdeploy.zoo.encoders.encoder import Encoder, EncoderOptions

_HERE = "segdeploy.zoo.encoders"
ENCODERS: Registry[Callable[[EncoderOptions], Encoder]] = Registry(
    "encoder",
    {
        "efficientnet_b0": f"{_HERE}.efficientnet:EFFICIENTNET_B0",
        "efficientnet_b1": f"{_HERE}.efficientnet:EFFICIENTNET_B1",
        "efficientnet_b2": f"{_HERE}.efficientnet:EFFICIENTNET_B2",
        "efficientnet_b3": f"{_HERE}.efficientnet:EFFICIENTNET_B3",
        "mit_b0": f"{_HERE}.mit:MIT_B0",
        "mit_b1": f"{_HERE}.mit:MIT_B1",
        "mit_b2": f"{_HERE}.mit:MIT_B2",
        "mit_b3": f"{_HERE}.mit:MIT_B3",
        "mit_b4": f"{_HERE}.mit:MIT_B4",
        "mit_b5": f"{_HERE}.mit:MIT_B5",
        "mobilenet_v2": f"{_HERE}.mobilenet_v2:build_mobilenet_v2",
        "mobilenet_v3_large": f"{_HERE}.mobilenet_v3:MOBILENET_V3_LARGE",
        "mobilenet_v3_small": f"{_HERE}.mobilenet_v3:MOBILENET_V3_SMALL",
        "resnet18": f"{_HERE}.resnet:RESNET18",
        "resnet34": f"{_HERE}.resnet:RESNET34",
        "resnet50": f"{_HERE}.resnet:RESNET50",
        "resnet101": f"{_HERE}.resnet:RESNET101",
        "resnet152": f"{_HERE}.resnet:RESNET152",
        "resnext50_32x4d": f"{_HERE}.resnet:RESNEXT50_32X4D",
        "resnext101_32x8d": f"{_HERE}.resnet:RESNEXT101_32X8D",
        "vgg16_bn": f"{_HERE}.vgg:build_vgg16_bn",
    },
    entry_point_group="segdeploy.encoders",
)
TIMM = "timm/"


def is_encoder(name: str) -> bool:
    """Return whether `name` can be an encoder; of timm's only the prefix is looked at."""
    return name in ENCODERS or (name.startswith(TIMM) and len(name) > len(TIMM))


def create_encoder(
    name: str,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    depth: int = 5,
    is_first_dilated: bool = True,
) -> Encoder:
    """Return a freshly initialised encoder; for the arguments see `EncoderOptions`.

    Raises:
        UnknownNameError: If no encoder has this name.
        ConfigError: If an option is out of range, or this encoder cannot be dilated.
        BackendUnavailableError: If torch, or timm for `timm/...`, is not installed.
    """
    from segdeploy.frameworks.torch import require_torch

    require_torch("torchvision")
    from segdeploy.zoo.encoders.encoder import EncoderOptions

    if output_stride not in {8, 16, 32} or not 1 <= depth <= 5 or in_channels < 1:
        raise ConfigError(
            f"An encoder has output stride 8, 16 or 32, depth 1 to 5 and at least one input "
            f"channel, asked for {output_stride}, {depth}, {in_channels}."
        )
    options = EncoderOptions(in_channels, output_stride, depth, is_first_dilated)
    if name.startswith(TIMM):
        from segdeploy.zoo.encoders.timm import build_timm

        return build_timm(options, name.removeprefix(TIMM))
    return ENCODERS.get(name)(options)


__all__ = ["ENCODERS", "create_encoder", "is_encoder"]
