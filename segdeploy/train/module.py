"""The module of a run: what is frozen, its modes, its memory format, its compiler."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from segdeploy.core.errors import BackendUnavailableError, ConfigError
from segdeploy.core.task import num_logits
from segdeploy.data import Dataset
from segdeploy.train.config import TrainConfig
from segdeploy.zoo.keys import encoder_name


def freeze_parts(module: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """Return the parts that stay as they are, after stopping their gradients.

    Raises:
        ConfigError: If the model has no encoder, or nothing else.
    """
    if config.freeze == "none":
        return []
    name = encoder_name(module)
    if name is None:
        raise ConfigError(
            f"{config.model} has no child 'encoder' or 'backbone' to freeze.",
            hint="Leave --freeze out, or name the module's encoder so.",
        )
    encoder = module.get_submodule(name).requires_grad_(requires_grad=False)
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError(f"{config.model} is all encoder: with it frozen nothing is trained.")
    return [encoder]


def to_memory_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Return the module with its weights in a memory format (torch's own stub lacks the form)."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def compile_module(module: nn.Module, device: torch.device) -> None:
    """Have torch.compile run the module, which stays what it is: its names, its tensors.

    Raises:
        BackendUnavailableError: If there is no C++ compiler, which is needed on a CPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise BackendUnavailableError(
            f"--compile needs a C++ compiler, but there is no {compiler}.",
            hint="Install it: apt-get install g++ (or name one in CXX), or leave --compile out.",
        )
    module.compile()


def set_mode(model: nn.Module, config: TrainConfig) -> None:
    """Training mode, with the recipe's exceptions."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  all dimensions
            if config.norm_momentum is not None:
                module.momentum = config.norm_momentum
            module.train(not config.freeze_batch_norm)
        elif isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001  all dimensions
            module.train(config.dropout)


def logit_channels(dataset: Dataset) -> int:
    """Return K of the model that fits a data set."""
    return num_logits(dataset.task, len(dataset.classes))
