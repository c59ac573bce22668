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
from segdeploy.core.trust import is_callable_name
from segdeploy.zoo.custom import callable_spec, plugin_spec
from segdeploy.zoo.encoders import ENCODERS, is_encoder
from segdeploy.zoo.spec import Architecture, ModelSpec

_HERE = "segdeploy.zoo.architectures"

ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    {
        "atten": f"{_HERE}.atten:ATTEN",
        "atten_lateral": f"{_HERE}.atten:ATTEN_LATERAL",
        "atten_se": f"{_HERE}.atten:ATTEN_SE",
        "deeplabv3": f"{_HERE}.smp_deeplabv3:DEEPLABV3",
        "deeplabv3_pe": f"{_HERE}.deeplabv3_pe:DEEPLABV3_PE",
        "deeplabv3_smp": f"{_HERE}.smp_deeplabv3:DEEPLABV3_SMP",
        "deeplabv3plus": f"{_HERE}.deeplabv3plus:DEEPLABV3PLUS",
        "dpt": f"{_HERE}.dpt:DPT_ON_VIT",
        "encnet": f"{_HERE}.encnet:ENCNET",
        "encnet_lateral": f"{_HERE}.encnet:ENCNET_LATERAL",
        "fcfpn": f"{_HERE}.fcfpn:FCFPN",
        "fcn": f"{_HERE}.fcn:FCN",
        "fpn": f"{_HERE}.fpn:FPN",
        "jpu_deeplabv3": f"{_HERE}.jpu:JPU_DEEPLABV3",
        "jpu_encnet": f"{_HERE}.jpu:JPU_ENCNET",
        "jpu_fcn": f"{_HERE}.jpu:JPU_FCN",
        "jpu_psp": f"{_HERE}.jpu:JPU_PSP",
        "linknet": f"{_HERE}.linknet:LINKNET",
        "manet": f"{_HERE}.manet:MANET",
        "pan": f"{_HERE}.pan:PAN",
        "psp": f"{_HERE}.psp:PSP",
        "pspnet": f"{_HERE}.pspnet:PSPNET",
        "segformer": f"{_HERE}.segformer:SEGFORMER",
        "unet": f"{_HERE}.encoder_unet:UNET",
        "unet_scse": f"{_HERE}.encoder_unet:UNET_SCSE",
        "unet_smp": f"{_HERE}.encoder_unet:UNET_SMP",
        "unetplusplus": f"{_HERE}.unetplusplus:UNETPLUSPLUS",
        "uperhead": f"{_HERE}.uperhead:UPERHEAD",
        "upernet": f"{_HERE}.upernet:UPERNET",
    },
)

_FIXED = {
    "deeplabv3_mobilenet_v3_large": f"{_HERE}.deeplabv3:DEEPLABV3_MOBILENET_V3_LARGE",
    "deeplabv3_resnet101": f"{_HERE}.deeplabv3:DEEPLABV3_RESNET101",
    "deeplabv3_resnet50": f"{_HERE}.deeplabv3:DEEPLABV3_RESNET50",
    "lraspp_mobilenet_v3_large": f"{_HERE}.lraspp:LRASPP_MOBILENET_V3_LARGE",
    "lraspp_mobilenet_v3_small": f"{_HERE}.lraspp:LRASPP_MOBILENET_V3_SMALL",
    "u2net": f"{_HERE}.u2net:U2NET",
    "u2net_lite": f"{_HERE}.u2net:U2NET_LITE",
    "unet": f"{_HERE}.unet:UNET",
    "unet_base64": f"{_HERE}.unet:UNET_BASE64",
    "unet_mobilenet_v3_large": f"{_HERE}.unet_on_features:UNET_MOBILENET_V3_LARGE",
    "unet_transposed": f"{_HERE}.unet:UNET_TRANSPOSED",
    "unet_vgg16_bn": f"{_HERE}.unet_on_features:UNET_VGG16_BN",
}

# Architectures on encoders that are listed, tested and tabled by name; any other pair works too.
_LISTED = (
    "atten_resnet50",
    "deeplabv3_resnet34",
    "deeplabv3plus_mobilenet_v2",
    "deeplabv3plus_resnet34",
    "deeplabv3plus_resnet50",
    "dpt_timm/vit_base_patch16_224.augreg_in21k",
    "encnet_lateral_resnet50",
    "encnet_timm/resnet50s",
    "fcfpn_resnet50",
    "fcn_resnet101",
    "fcn_resnet50",
    "fpn_mobilenet_v2",
    "fpn_resnet34",
    "jpu_encnet_resnet50",
    "jpu_fcn_resnet50",
    "linknet_resnet34",
    "manet_resnet34",
    "pan_resnet34",
    "psp_resnet50",
    "pspnet_resnet34",
    "segformer_mit_b0",
    "segformer_resnet34",
    "unet_efficientnet_b0",
    "unet_mit_b0",
    "unet_mobilenet_v2",
    "unet_resnet34",
    "unet_scse_resnet34",
    "unetplusplus_resnet34",
    "uperhead_resnet50",
    "upernet_resnet34",
    "upernet_timm/convnext_tiny",
)


# Attention in windows: the exporter does not come to an end with dynamic sizes.
_FIXED_SIZE_ENCODERS = ("timm/swin",)


class ModelRegistry(Registry[ModelSpec]):
    """Fixed models and listed pairs; finds every architecture on every encoder, and callables."""

    def __init__(self) -> None:
        super().__init__("model", _FIXED, entry_point_group="segdeploy.models")

    def names(self) -> list[str]:
        """Return the named models, sorted; loads no framework."""
        return sorted({*super().names(), *_LISTED})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        is_named = super().__contains__(name) or _split(name) is not None
        return is_named or is_callable_name(name)

    def get(self, name: str) -> ModelSpec:
        """Return the spec of a fixed model, an architecture on an encoder, or a callable.

        Raises:
            UnknownNameError: If there is none; the hint lists the nearest names.
        """
        if super().__contains__(name):
            return plugin_spec(name, super().get(name))
        pair = _split(name)
        if pair is not None:
            return _spec(name, *pair)
        return callable_spec(name) if is_callable_name(name) else super().get(name)

    def unknown(self, name: str) -> UnknownNameError:
        """Return the error; if the architecture is known, it is about the encoder."""
        if ":" in name:
            return UnknownNameError(
                f"Unknown model '{name}'.", hint="One of your own is package.module:callable."
            )
        for architecture in _by_length():
            if name.startswith(architecture + "_"):
                error = ENCODERS.unknown(name.removeprefix(architecture + "_"))
                return UnknownNameError(f"Unknown model '{name}': {error.message}", hint=error.hint)
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
        is_fixed_size=found.is_fixed_size or encoder.startswith(_FIXED_SIZE_ENCODERS),
    )


MODELS = ModelRegistry()
