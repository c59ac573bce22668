"""All models by name: the tables, and how a name is read.

A name is looked up in this order: a fixed model (`u2net`), an architecture on an encoder
(`unet_resnet34`, `encnet_timm/resnet50s`; the longest architecture name wins), or a callable of
one's own (`package.module:callable`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from segdeploy.core.errors import UnknownNameError
from segdeploy.core.registry import Registry
from segdeploy.zoo.encoders import ENCODERS, is_encoder
from segdeploy.zoo.spec import Architecture, ModelSpec

_HERE = "segdeploy.zoo.architectures"

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    {
        "fcn": f"{_HERE}.fcn:FCN",
    },
)

_FIXED = {
    "deeplabv3_mobilenet_v3_large": f"{_HERE}.deeplabv3:DEEPLABV3_MOBILENET_V3_LARGE",
    "deeplabv3_resnet50": f"{_HERE}.deeplabv3:DEEPLABV3_RESNET50",
    "deeplabv3_resnet101": f"{_HERE}.deeplabv3:DEEPLABV3_RESNET101",
    "lraspp_mobilenet_v3_large": f"{_HERE}.lraspp:LRASPP_MOBILENET_V3_LARGE",
    "lraspp_mobilenet_v3_small": f"{_HERE}.lraspp:LRASPP_MOBILENET_V3_SMALL",
    "unet": f"{_HERE}.unet:UNET",
    "unet_base64": f"{_HERE}.unet:UNET_BASE64",
    "unet_transposed": f"{_HERE}.unet:UNET_TRANSPOSED",
}

# Architectures on encoders that are listed, tested and tabled by name; any other pair works too.
_LISTED = (
    "fcn_resnet50",
    "fcn_resnet101",
)


class ModelRegistry(Registry[ModelSpec]):
    """Fixed models and listed pairs; finds every architecture on every encoder."""

    def __init__(self) -> None:
        super().__init__("model", _FIXED, entry_point_group="segdeploy.models")

    def names(self) -> list[str]:
        """Return the named models, sorted; loads no framework."""
        return sorted({*super().names(), *_LISTED})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and _split(name) is not None)

    def get(self, name: str) -> ModelSpec:
        """Return the spec of a fixed model or of an architecture on an encoder.

        Raises:
            UnknownNameError: If there is neither; the hint lists the nearest names.
        """
        pair = None if super().__contains__(name) else _split(name)
        return super().get(name) if pair is None else _spec(name, *pair)

    def unknown(self, name: str) -> UnknownNameError:
        """Return the error; if the architecture is known, it is about the encoder."""
        for architecture in _by_length():
            if name.startswith(architecture + "_"):
                error = ENCODERS.unknown(name.removeprefix(architecture + "_"))
                return UnknownNameError(f"Unknown model '{name}': {error}", hint=error.hint)
        return super().unknown(name)


def _by_length() -> list[str]:
    return sorted(ARCHITECTURES, key=len, reverse=True)


def _split(name: str) -> tuple[str, str] | None:
    """The architecture and the encoder of `name`, longest architecture first."""
    for architecture in _by_length():
        encoder = name.removeprefix(architecture + "_")
        if encoder != name and is_encoder(encoder):
            return architecture, encoder
    return None


def _spec(name: str, architecture: str, encoder: str) -> ModelSpec:
    found = ARCHITECTURES.get(architecture)
    return ModelSpec(
        name=name,
        build=partial(found.build, encoder),
        output_stride=found.output_stride,
        source=found.source,
        family=found.family,
        input_size=found.input_size,
        encoder=encoder,
        is_fixed_size=found.is_fixed_size,
    )


MODELS = ModelRegistry()
