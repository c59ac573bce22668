"""The optimizer of a recipe, with a learning rate and a decay for each group of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError
from segdeploy.train.config import TrainConfig
from segdeploy.zoo.keys import encoder_name

_KINDS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def create_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of all trained parameters; each group has its `lr_factor`.

    Parameters with the same settings make one group, in the module's order.

    Raises:
        ConfigError: If nothing can be trained; if the head shall have a rate of its own, but the
            model has no encoder.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    encoder = _encoder_prefix(config, module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = 1.0 if name.startswith(encoder) else config.head_lr_factor
            # Of vectors: biases, and the scales and shifts of norms.
            is_spared = parameter.ndim <= 1 and not config.decay_norms
            decay = 0.0 if is_spared else config.weight_decay
            groups.setdefault((factor, decay), []).append(parameter)
    if not groups:
        raise ConfigError(f"{config.model} has no parameters that can be trained.")
    settings = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
    extra = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer: torch.optim.Optimizer = _KINDS[config.optimizer](settings, config.lr, **extra)
    return optimizer


def _encoder_prefix(config: TrainConfig, module: nn.Module) -> str:
    """How the encoder's parameters begin; as all do, where the head has no rate of its own."""
    if config.head_lr_factor == 1:
        return ""
    encoder = encoder_name(module)
    if encoder is None:
        raise ConfigError(
            f"{config.model} has no child 'encoder' or 'backbone': all of it would be head.",
            hint="Leave --head-lr-factor out and set --lr, or name the module's encoder so.",
        )
    return f"{encoder}."


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the encoder's parameters; the head's follows by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)  # A state of an older run has none.


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Return the common 2-norm of all gradients, a scalar; scale them down to `limit` unless 0."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
