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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import TrainError
from segdeploy.core.trust import is_callable_name
from segdeploy.data import Dataset
from segdeploy.data.transforms import TrainingView, TrainTransform
from segdeploy.frameworks.distributed import Group, average_in_order
from segdeploy.frameworks.sync_batch_norm import synchronize_batch_norm
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.train.config import TrainConfig
from segdeploy.train.ema import Average
from segdeploy.train.guard import BadStep, Guard
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import WeightedSum
from segdeploy.train.module import compile_module, freeze_parts, set_mode, to_memory_format
from segdeploy.train.optimizers import clip_gradients, create_optimizer, set_rate
from segdeploy.train.random_state import random_state, seed_rank, set_random_state
from segdeploy.train.record import Record, Step
from segdeploy.train.schedule import rate_factor
from segdeploy.train.state import Progress
from segdeploy.zoo.blocks.drop_block import DropBlock
from segdeploy.zoo.outputs import presence_logits, split_outputs

_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training gave: its mean loss and the learning rate at its end."""

    loss: float
    lr: float


@dataclass(frozen=True)
class Asked:
    """What shall happen after an iteration: of any rank, stop; of the main rank, save."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Outcome:
    """An iteration as it went: `is_own_finite` is of this rank's loss, `is_finite` of all."""

    step: Step
    is_finite: bool
    is_own_finite: bool


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
        if config.sync_batch_norm and group.world > 1:
            module = synchronize_batch_norm(module, group.device)
        self.module = to_memory_format(module.to(group.device), self.memory_format)
        self.frozen = freeze_parts(self.module, config)
        self.drop_block = DropBlock(self.module, config.drop_block) if config.drop_block else None
        self.optimizer = create_optimizer(config, self.module)
        if config.compile:
            compile_module(self.module, group.device)
        self.model: nn.Module = self.module
        if group.world > 1:
            device_ids = [group.device.index] if group.device.type == "cuda" else None
            parallel = nn.parallel.DistributedDataParallel(
                self.module,
                device_ids=device_ids,
                find_unused_parameters=is_callable_name(config.model),  # The zoo's are frozen.
            )
            average_in_order(parallel, group)
            self.model = parallel
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.amp == "fp16")
        self.average = Average(self.module, config.ema_decay) if config.ema_decay else None
        self.num_batches = num_batches
        self.num_steps = config.epochs * num_batches
        self.progress = Progress()
        self.guard = Guard(config, self.module, group)
        if group.rank:
            seed_rank(config.seed, group.rank)

    def train_epoch(
        self,
        view: TrainingView,
        batches: list[list[int]],
        *,
        record: Record,
        asked: Callable[[], Asked],
        save: Callable[[], None],
    ) -> Epoch:
        """Do the rest of the current epoch, from `progress.step` on.

        Raises:
            Interrupted: After a complete step, when any rank was asked to stop.
            TrainError: If loss or gradients are not finite and the run shall end then.
        """
        set_mode(self.model, self.config)
        for part in self.frozen:
            part.eval()
        progress = self.progress
        todo = batches[progress.step :]
        loader = create_loader(view, todo, self.group.rank, self.group.world, self.config.workers)
        found = record.batches(loader, len(todo), progress)
        for (images, labels), batch in zip(found, todo, strict=True):
            self._set_rate()
            self.guard.keep()
            outcome, agreed = self._step(images, labels, asked())
            step = outcome.step
            if outcome.is_finite:
                progress.skipped_in_row = 0
                progress.loss_sum += step.loss * step.norm
                progress.norm_sum += step.norm
                record.step(progress, step)
            else:
                mine = batch[self.group.rank :: self.group.world]
                is_own = not outcome.is_own_finite
                bad = BadStep(images, labels, mine, step.loss, step.grad_norm, is_own)
                record.skip(self.guard.refuse(bad, progress, view.samples))
            progress.step += 1
            if agreed.stop:
                raise Interrupted
            if agreed.save:
                save()
        mean = progress.loss_sum / max(progress.norm_sum, 1.0)
        rate = self._rate(progress.epoch * self.num_batches + self.num_batches - 1)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.norm_sum = 0.0
        return Epoch(mean, rate)

    def _step(self, images: Tensor, labels: Tensor, asked: Asked) -> tuple[Outcome, Asked]:
        """Do one iteration, unless it is not finite; return it and what is asked of all ranks."""
        labels = labels.to(self.group.device, non_blocking=True)
        norms, agreed = self._agree(labels, asked)
        self.optimizer.zero_grad(set_to_none=True)
        size = len(images) // self.config.accumulate
        parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
        totals = torch.zeros(len(norms) - 1, device=self.group.device)
        for number, (some_images, some_labels) in enumerate(parts, start=1):
            with self._syncing(is_last=number == self.config.accumulate):
                totals = totals + self._backward(some_images, some_labels, norms)
        summed = self.group.sum(totals.to(torch.float64, copy=True))
        value = float(self.loss.value(summed, norms[:-1]))
        self.scaler.unscale_(self.optimizer)
        grad_norm = float(clip_gradients(self.optimizer, self.config.clip_norm))
        is_finite = math.isfinite(value) and self._is_usable(grad_norm)
        if is_finite:
            self._update()
        else:
            self.scaler.update()  # It wants to know how every unscaling ended.
        step = Step(value, float(norms[0]), self._rate(self._number()), grad_norm)
        return Outcome(step, is_finite, bool(totals.isfinite().all())), agreed

    def _agree(self, labels: Tensor, asked: Asked) -> tuple[Tensor, Asked]:
        """Return the normalisers over all ranks, of presence last, and what any of them asks."""
        device = self.group.device
        agreed = torch.cat([
            self.loss.normalizers(labels).to(device),
            self.presence.normalizer(labels).to(device).view(1),
            torch.tensor([asked.stop, asked.save], dtype=torch.float64, device=device),
        ])  # fmt: skip
        self.group.sum(agreed)
        stop, save = agreed[-2:].tolist()
        return agreed[:-2], Asked(bool(stop), bool(save))

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

    def _is_usable(self, grad_norm: float) -> bool:
        """Return whether the gradients are finite, or infinite because the scaler still seeks.

        It then leaves the step out and scales less; below 1 it is not the scale that made them so.
        """
        if math.isfinite(grad_norm):
            return True
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def _update(self) -> None:
        """Take the optimizer's step with the gradients of the batch."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.module)

    def _number(self) -> int:
        """Return which iteration of the run is being done."""
        return self.progress.epoch * self.num_batches + self.progress.step

    def _rate(self, step: int) -> float:
        return self.config.lr * rate_factor(self.config, step, self.num_steps)

    def _set_rate(self) -> None:
        step = self._number()
        set_rate(self.optimizer, self._rate(step))
        if self.drop_block is not None:
            self.drop_block.share = step / self.num_steps

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict to validate and keep: the average if there is one."""
        return self.average.state if self.average is not None else self.module.state_dict()

    def state_parts(self) -> dict[str, Any]:
        """Return everything but the progress that `load_parts` needs; every rank must call."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None
            if self.average is None
            else {"state": self.average.state, "num_updates": self.average.num_updates},
            "random_states": self.group.gather(random_state(self.group.device)),
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
        states = parts.get("random_states", ())  # An older run's has none.
        if self.group.rank < len(states):
            set_random_state(states[self.group.rank], self.group.device)
        else:
            seed_rank(self.config.seed, self.group.rank, self._number())


def plan_epoch(
    config: TrainConfig, num_samples: int, epoch: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the global batches of an epoch, each of one group if there are groups."""
    return epoch_batches(num_samples, config.batch_size, config.seed, epoch, groups)


def create_view(
    config: TrainConfig, dataset: Dataset, transform: TrainTransform, epoch: int
) -> TrainingView:
    """Return the augmented data set of an epoch."""
    return TrainingView(dataset, transform, config.seed, epoch)
