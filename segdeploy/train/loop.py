"""The epoch loop: one `Trainer` holds all that changes while training.

Its state goes through `state_parts`, so that a resumed run is the uninterrupted one.

The loss of a global batch is sum over valid pixels of all ranks / valid pixels of all ranks, and
so for images (see `losses`). DDP averages gradients over ranks, hence the factor `world` on the
local part. An accumulated batch is worked through in parts that are divided by the same, so that
they add up to the whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError, TrainError
from segdeploy.core.task import Task, ignore_value, num_logits
from segdeploy.core.trust import is_callable_name
from segdeploy.data import Dataset
from segdeploy.data.transforms import TrainingView, TrainTransform
from segdeploy.frameworks.distributed import Group
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.train.config import TrainConfig
from segdeploy.train.ema import Average
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import WeightedSum
from segdeploy.train.optimizers import clip_gradients, create_optimizer, set_rate
from segdeploy.train.schedule import rate_factor
from segdeploy.train.state import Progress
from segdeploy.zoo.blocks.drop_block import DropBlock
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
        loss: What is minimised, of the main and of auxiliary logits.
        presence: Sums over images; used where the model has a presence head.
        group: The processes that train together.
        num_batches: Iterations per epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        module: nn.Module,
        loss: WeightedSum,
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
        self.drop_block = DropBlock(self.module, config.drop_block) if config.drop_block else None
        self.optimizer = create_optimizer(config, self.module)
        self.model: nn.Module = self.module
        if group.world > 1:
            device_ids = [group.device.index] if group.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(
                self.module,
                device_ids=device_ids,
                find_unused_parameters=is_callable_name(config.model),  # The zoo's are frozen.
            )
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
            value, norm, stop = self._step(images, labels, should_stop())
            progress.loss_sum += value * norm
            progress.norm_sum += norm
            progress.step += 1
            on_step(value)
            if stop:
                raise Interrupted
        mean = progress.loss_sum / max(progress.norm_sum, 1.0)
        rate = self._rate(progress.epoch * self.num_batches + self.num_batches - 1)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.norm_sum = 0.0
        return Epoch(mean, rate)

    def _step(self, images: Tensor, labels: Tensor, stop: bool) -> tuple[float, float, bool]:
        """Do one iteration; return (loss, normaliser) over all ranks, and whether to stop."""
        labels = labels.to(self.group.device, non_blocking=True)
        norms, stop = self._agree(labels, stop)
        self.optimizer.zero_grad(set_to_none=True)
        size = len(images) // self.config.accumulate
        parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
        totals = torch.zeros(len(norms) - 1, device=self.group.device)
        for number, (some_images, some_labels) in enumerate(parts, start=1):
            with self._syncing(is_last=number == self.config.accumulate):
                totals = totals + self._backward(some_images, some_labels, norms)
        value = float(self.loss.value(self.group.sum(totals.double()), norms[:-1]))
        if not math.isfinite(value):
            raise TrainError(
                f"The loss is {value} at epoch {self.progress.epoch}, step {self.progress.step}.",
                hint="Lower --lr, or train without --amp fp16. The last complete epoch is kept: "
                "see RUN/last.",
            )
        self._update()
        return value, float(norms[0]), stop

    def _agree(self, labels: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """Return the normalisers over all ranks, of presence last, and whether any shall stop."""
        device = self.group.device
        agreed = torch.cat([
            self.loss.normalizers(labels).to(device),
            self.presence.normalizer(labels).to(device).view(1),
            torch.tensor([float(stop)], dtype=torch.float64, device=device),
        ])  # fmt: skip
        self.group.sum(agreed)
        return agreed[:-1], bool(agreed[-1])

    def _syncing(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Let ranks exchange gradients once a batch, after its last part."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, images: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        """Add the gradients of a part of the batch; return the sums of its main loss."""
        device = self.group.device
        images = images.to(device, memory_format=self.memory_format, non_blocking=True)
        amp = _AMP_TYPES.get(self.config.amp, torch.bfloat16)
        with torch.autocast(device.type, amp, enabled=self.config.amp != "none"):
            output = self._forward(images)
        totals, loss = self._losses(output, labels, norms)
        self.scaler.scale(loss * self.group.world).backward()  # type: ignore[no-untyped-call]
        return totals.detach()

    def _forward(self, images: Tensor) -> Any:
        try:
            return self.model(images)
        except ValueError as error:  # Batch norm of a single value has no variance.
            shape = "x".join(map(str, images.shape))
            raise TrainError(
                f"The model cannot train on {shape}, the part of one process: {error}.",
                hint="Give more images per process (--batch-size) and part (--accumulate), or a "
                "larger --crop.",
            ) from error

    def _losses(self, output: Any, labels: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return this part's sums of the main loss, and its part of the loss of the batch."""
        main, auxiliary = split_outputs(output)
        main_totals = totals = self.loss.totals(main, labels)
        for logits in auxiliary:
            totals = totals + self.config.aux_weight * self.loss.totals(logits, labels)
        loss = self.loss.value(totals, norms[:-1])
        presence = presence_logits(output)
        if presence is not None:
            shown = self.presence.total(presence, labels)
            loss = loss + self.config.se_weight * shown / norms[-1].clamp(min=1e-12)
        return main_totals, loss

    def _update(self) -> None:
        """Take the optimizer's step with the gradients of the batch."""
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.optimizer, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.module)

    def _rate(self, step: int) -> float:
        return self.config.lr * rate_factor(self.config, step, self.num_steps)

    def _set_rate(self) -> None:
        step = self.progress.epoch * self.num_batches + self.progress.step
        set_rate(self.optimizer, self._rate(step))
        if self.drop_block is not None:
            self.drop_block.share = step / self.num_steps

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
