"""The epoch loop: one `Trainer` holds all that changes while training.

Its state goes through `state_parts`, so that a resumed run is the uninterrupted one.

The loss of a global batch is sum over valid pixels of all ranks / valid pixels of all ranks, and
so for images where the model has a presence head. DDP averages gradients over ranks, hence the
factor `world` on the local part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError, TrainError
from segdeploy.core.task import Task, ignore_value, num_logits
from segdeploy.data import Dataset
from segdeploy.data.transforms import TrainingView, TrainTransform
from segdeploy.frameworks.distributed import Group
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.train.config import TrainConfig
from segdeploy.train.ema import Average
from segdeploy.train.losses import Loss, Presence
from segdeploy.train.schedule import poly_factor
from segdeploy.train.state import Progress
from segdeploy.zoo.keys import encoder_name
from segdeploy.zoo.outputs import presence_logits, split_outputs

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training gave: its mean loss and the learning rate at its end."""

    loss: float
    lr: float


class Interrupted(Exception):  # noqa: N818  a control signal, not an error
    """A rank was asked to stop; the state is consistent and can be saved."""


class Trainer:
    """Module, optimizer and everything else that changes while training.

    Args:
        config: The recipe.
        module: Freshly initialised or loaded; moved to the group's device.
        loss: Sums over valid pixels.
        presence: Sums over images; used where the model has a presence head.
        group: The processes that train together.
        num_batches: Iterations per epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        module: nn.Module,
        loss: Loss,
        presence: Presence,
        group: Group,
        num_batches: int,
    ) -> None:
        self.config, self.group = config, group
        self.loss, self.presence = loss, presence
        self.memory_format = (
            torch.channels_last if config.channels_last else torch.contiguous_format
        )
        self.module = to_memory_format(module.to(group.device), self.memory_format)
        self.frozen = _freeze(self.module, config)
        self.model: nn.Module = self.module
        if group.world > 1:
            device_ids = [group.device.index] if group.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(self.module, device_ids=device_ids)
        self.optimizer = _create_optimizer(config, self.module)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.amp == "fp16")
        self.average = Average(self.module, config.ema_decay) if config.ema_decay else None
        self.num_batches = num_batches
        self.num_steps = config.epochs * num_batches
        self.progress = Progress()

    def train_epoch(
        self,
        view: TrainingView,
        batches: list[list[int]],
        *,
        on_step: Callable[[float], None],
        should_stop: Callable[[], bool],
    ) -> Epoch:
        """Do the rest of the current epoch, from `progress.step` on.

        Raises:
            Interrupted: After a complete step, when any rank was asked to stop.
            TrainError: If the loss is not finite.
        """
        _set_mode(self.model, self.config)
        for part in self.frozen:
            part.eval()
        progress = self.progress
        todo = batches[progress.step :]
        loader = create_loader(view, todo, self.group.rank, self.group.world, self.config.workers)
        for images, labels in loader:
            self._set_rate()
            total, norm, stop = self._step(images, labels, should_stop())
            progress.loss_sum += total
            progress.norm_sum += norm
            progress.step += 1
            on_step(total / max(norm, 1.0))
            if stop:
                raise Interrupted
        mean = progress.loss_sum / max(progress.norm_sum, 1.0)
        rate = self._rate(progress.epoch * self.num_batches + self.num_batches - 1)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.norm_sum = 0.0
        return Epoch(mean, rate)

    def _step(self, images: Tensor, labels: Tensor, stop: bool) -> tuple[float, float, bool]:
        """Do one iteration; return (loss sum, normaliser) over all ranks, and whether to stop."""
        device = self.group.device
        images = images.to(device, memory_format=self.memory_format, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        agreed = torch.stack([
            self.loss.normalizer(labels).to(device),
            self.presence.normalizer(labels).to(device),
            torch.tensor(float(stop), dtype=torch.float64, device=device),
        ])  # fmt: skip
        self.group.sum(agreed)
        self.optimizer.zero_grad(set_to_none=True)
        amp = _AMP_TYPES.get(self.config.amp, torch.bfloat16)
        with torch.autocast(device.type, amp, enabled=self.config.amp != "none"):
            output = self.model(images)
        main_total, loss = self._losses(output, labels, agreed[:2].clamp(min=1e-12))
        self.scaler.scale(loss * self.group.world).backward()  # type: ignore[no-untyped-call]
        value = float(self.group.sum(main_total.detach().double()))
        if not math.isfinite(value):
            raise TrainError(
                f"The loss is {value} at epoch {self.progress.epoch}, step {self.progress.step}.",
                hint="Lower --lr, or train without --amp fp16. The last complete epoch is kept: "
                "see RUN/last.",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.module)
        return value, float(agreed[0]), bool(agreed[2])

    def _losses(self, output: Any, labels: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's sum of the main loss, and its part of the loss of the batch."""
        main, auxiliary = split_outputs(output)
        main_total = total = self.loss.total(main, labels)
        for logits in auxiliary:
            total = total + self.config.aux_weight * self.loss.total(logits, labels)
        loss = total / norms[0]
        presence = presence_logits(output)
        if presence is not None:
            shown = self.presence.total(presence, labels)
            loss = loss + self.config.se_weight * shown / norms[1]
        return main_total, loss

    def _rate(self, step: int) -> float:
        config = self.config
        return config.lr * poly_factor(step, self.num_steps, config.warmup_steps, config.poly_power)

    def _set_rate(self) -> None:
        rate = self._rate(self.progress.epoch * self.num_batches + self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict to validate and keep: the average if there is one."""
        return self.average.state if self.average is not None else self.module.state_dict()

    def state_parts(self) -> dict[str, Any]:
        """Return everything but the progress that `load_parts` needs."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None
            if self.average is None
            else {"state": self.average.state, "num_updates": self.average.num_updates},
            "random": torch.get_rng_state(),
        }

    def load_parts(self, progress: Progress, parts: dict[str, Any]) -> None:
        """Take over the state of an interrupted run."""
        self.progress = progress
        self.module.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.scaler.load_state_dict(parts["scaler"])
        if self.average is not None and parts["average"] is not None:
            for key, value in parts["average"]["state"].items():
                self.average.state[key].copy_(value)
            self.average.num_updates = parts["average"]["num_updates"]
        torch.set_rng_state(parts["random"])


def _freeze(module: nn.Module, config: TrainConfig) -> list[nn.Module]:
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


def _create_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)


def to_memory_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Return the module with its weights in a memory format (torch's own stub lacks the form)."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def _set_mode(model: nn.Module, config: TrainConfig) -> None:
    """Training mode, with the recipe's exceptions."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  all dimensions
            if config.norm_momentum is not None:
                module.momentum = config.norm_momentum
            module.train(not config.freeze_batch_norm)
        elif isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001  all dimensions
            module.train(config.dropout)


def plan_epoch(config: TrainConfig, num_samples: int, epoch: int) -> list[list[int]]:
    """Return the global batches of an epoch."""
    return epoch_batches(num_samples, config.batch_size, config.seed, epoch)


def create_view(
    config: TrainConfig, dataset: Dataset, transform: TrainTransform, epoch: int
) -> TrainingView:
    """Return the augmented data set of an epoch."""
    return TrainingView(dataset, transform, config.seed, epoch)


def class_weights(dataset: Dataset, on_item: Callable[[], None] | None = None) -> tuple[float, ...]:
    """Return sqrt(median frequency / frequency) per class of the labels.

    Source: median frequency balancing of Eigen & Fergus, 2015, under a square root, which lifts
    rare classes without drowning frequent ones. A class that never occurs gets weight 1.
    """
    num_ids = 2 if dataset.task is Task.BINARY else len(dataset.classes)
    counts = np.zeros(num_ids, np.int64)
    for index in range(len(dataset)):
        label = dataset[index].label
        counts += np.bincount(label[label != ignore_value(num_ids)], minlength=num_ids)
        if on_item is not None:
            on_item()
    share = counts / max(1, counts.sum())
    median = float(np.median(share[share > 0])) if counts.any() else 1.0
    weights = np.where(share > 0, np.sqrt(median / np.maximum(share, 1e-12)), 1.0)
    return tuple(weights.tolist())


def logit_channels(dataset: Dataset) -> int:
    """Return K of the model that fits a data set."""
    return num_logits(dataset.task, len(dataset.classes))
