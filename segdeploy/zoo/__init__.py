"""Models by name, and checkpoints of them.

    from segdeploy.zoo import create_model
    module = create_model("lraspp_mobilenet_v3_large", num_classes=11)

A model is one line in `segdeploy.zoo.catalog` and one `ModelSpec` or `Architecture`; one of your
own is `package.module:callable` (see `segdeploy.zoo.custom`). `models.json` is the generated table
that `segdeploy list models` prints without loading torch; a contract test recomputes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segdeploy.core.task import IGNORE_WIDE
from segdeploy.zoo.catalog import ARCHITECTURES, MODELS
from segdeploy.zoo.encoders import ENCODERS, create_encoder
from segdeploy.zoo.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


def create_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return a freshly initialised model with K = `num_classes` logit channels.

    Its forward takes float32 (N, C, H, W), C = `in_channels`, H and W >= 32, and returns
    {"out": logits (N, K, H, W)}. In training mode there are also {"aux": ...} or {"aux1": ...}:
    logits of auxiliary heads, of the same shape, and {"se": ...}: presence logits (N, K), where
    the model has such heads.

    Raises:
        UnknownNameError: If no model has this name.
        ConfigError: If `num_classes` is not in 1..65535, or `in_channels` is below 1.
        BackendUnavailableError: If torch is not installed.
    """
    from segdeploy.core.errors import ConfigError
    from segdeploy.frameworks.torch import require_torch

    if not 1 <= num_classes <= IGNORE_WIDE:
        raise ConfigError(
            f"A model has 1 to {IGNORE_WIDE} classes, asked for {num_classes}.",
            hint="Label maps are uint16 at most, and one value of them means 'ignored'.",
        )
    if in_channels < 1:
        raise ConfigError(f"A model has at least one input channel, asked for {in_channels}.")
    if name not in MODELS:
        raise MODELS.unknown(name)
    require_torch("torchvision")
    spec = MODELS.get(name)
    return spec.build(num_classes, *([in_channels] if in_channels != 3 else []))


def describe_models() -> list[dict[str, Any]]:
    """Return the rows of `segdeploy list models`; loads no framework, so plug-ins show None."""
    import json
    from importlib import resources

    table = json.loads(resources.files(__package__).joinpath("models.json").read_bytes())
    rows = {row["name"]: row for row in table}
    unknown = dict.fromkeys(table[0])
    return [rows.get(name, unknown | {"name": name}) for name in MODELS]


def __getattr__(name: str) -> Any:
    """Offer what needs torch (`load_module`, ...) without importing it for those who list."""
    if name in {"load_module", "save_checkpoint"}:
        from segdeploy.frameworks.torch import require_torch

        require_torch("safetensors")
        from segdeploy.zoo import checkpoint

        return getattr(checkpoint, name)
    if name == "main_logits":
        from segdeploy.zoo.outputs import main_logits

        return main_logits
    raise AttributeError(name)


__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "MODELS",
    "ModelSpec",
    "create_encoder",
    "create_model",
    "describe_models",
    "load_module",
    "main_logits",
    "save_checkpoint",
]  # fmt: skip
