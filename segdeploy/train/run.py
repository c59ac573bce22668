"""A training run in its folder: start or resume, epochs, validation, checkpoints, log, stop.

The main rank alone prints and writes; `folder.py` says what and when.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segdeploy.core.folder import Checkpoint, load_checkpoint
from segdeploy.core.preprocess import model_size
from segdeploy.core.task import ignore_value
from segdeploy.core.trust import is_callable_name
from segdeploy.data import TRAIN, open_dataset
from segdeploy.data.cache import CachedDataset
from segdeploy.data.transforms import TrainTransform
from segdeploy.frameworks.distributed import Group, process_group
from segdeploy.frameworks.launch_env import Launch, read_launch
from segdeploy.metrics import count_labels
from segdeploy.train.augment import plan_augmentation
from segdeploy.train.batches import loader_errors
from segdeploy.train.claim import check_launch, claim_together, claimed, goes_on
from segdeploy.train.class_weights import class_weights
from segdeploy.train.config import TrainConfig
from segdeploy.train.folder import RunFolder
from segdeploy.train.grouped import aspect_groups, aspect_ratios
from segdeploy.train.launch import STOP_SIGNAL, launch_ranks
from segdeploy.train.log import TrainingDisplay
from segdeploy.train.loop import Asked, Interrupted, Trainer, create_view, plan_epoch
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import WeightedSum, create_loss
from segdeploy.train.module import logit_channels
from segdeploy.train.record import Record
from segdeploy.train.state import Progress, load_state
from segdeploy.train.validation import Validation
from segdeploy.zoo import create_model
from segdeploy.zoo.custom import check_runs
from segdeploy.zoo.initial import load_initial_weights
from segdeploy.zoo.weights import read_weights


def run_training(config: TrainConfig, *, resume: bool, is_worker: bool = False) -> Checkpoint:
    """Do the work of `segdeploy.train.train` (see there), in one or several processes.

    Args:
        config: The recipe.
        resume: Continue RUN/last.
        is_worker: A rank of our own launcher, which holds the lock of the run folder itself.
    """
    if is_worker:
        return _run_rank(config, resume=resume, signals=_RANK_SIGNALS)
    launch = read_launch(os.environ)
    if launch.is_shared:
        check_launch(config, launch)
        return _run_rank(config, resume=resume, launch=launch)
    run = Path(config.out)
    resume = resume or goes_on(run, launch.restarts)
    with claimed(config, resume=resume, restarts=launch.restarts):
        if config.nproc > 1:
            launch_ranks(config, resume=resume)
            return load_checkpoint(run / "checkpoint")
        return _run_rank(config, resume=resume)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # The last two: a scheduler's.
_RANK_SIGNALS = (STOP_SIGNAL, signal.SIGTERM)  # Ctrl-C goes to the parent, which sends the first.


def _run_rank(
    config: TrainConfig,
    *,
    resume: bool,
    signals: Sequence[signal.Signals] = _SIGNALS,
    launch: Launch | None = None,
) -> Checkpoint:
    """Train as one rank; those of a `launch` still have to claim the run folder."""
    with (
        process_group(config.device, config.timeout_s) as group,
        _stop_flag(signals) as should_stop,
        loader_errors(),
        contextlib.ExitStack() as held,
    ):
        if launch is not None:
            resume = claim_together(config, group, launch, held, resume=resume)
        return _Run(config, group, should_stop).execute(resume=resume)


@contextlib.contextmanager
def _stop_flag(
    signals: Sequence[signal.Signals] = _SIGNALS,
) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a flag; a second of its kind interrupts at once."""
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        previous = {s: signal.signal(s, note) for s in signals}
    except ValueError:  # Not the main thread: whoever runs us handles signals.
        previous = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Run:
    """One rank's view of a run."""

    def __init__(self, config: TrainConfig, group: Group, should_stop: Callable[[], bool]) -> None:
        self.config, self.group, self.should_stop = config, group, should_stop
        self._lap_start = time.perf_counter()
        _seed_everything(config, group)
        self.train_set = open_dataset(config.data, TRAIN)
        sample = self.train_set[0]
        size = (sample.image.shape[0], sample.image.shape[1])
        plan = plan_augmentation(config, size)
        self.augment, self.preprocess = plan.augment, plan.preprocess
        self.validation = Validation(config, self.train_set, self.preprocess, group)
        design_size = model_size(size, self.preprocess)
        self.folder = RunFolder(config, self.train_set, self.preprocess, design_size)
        self.groups = None
        if config.group_by_aspect is not None:
            self.groups = aspect_groups(aspect_ratios(self.train_set), config.group_by_aspect)
        if config.cache_mib:  # Ranks are processes of their own: each has its share.
            limit_bytes = config.cache_mib * 2**20 // group.world
            self.train_set = CachedDataset(self.train_set, limit_bytes)

    def execute(self, *, resume: bool) -> Checkpoint:
        """Train to the end and return the best checkpoint."""
        config, group = self.config, self.group
        display = TrainingDisplay(config.epochs, is_shown=group.is_main)
        num_batches = len(self._plan(0))
        module = self._create_module(display, resume=resume)
        trainer = Trainer(config, module, *self._create_losses(), group, num_batches)
        record = Record(config, self.folder.path, group, num_batches, display)
        if resume:
            trainer.load_parts(*load_state(self.folder.last))
        record.begin(trainer.progress)
        with record:
            self._epochs(trainer, record)
        group.barrier()  # The main rank is still writing what all ranks return.
        return self.folder.load_best()

    def _create_module(self, display: TrainingDisplay, *, resume: bool) -> nn.Module:
        config = self.config
        module = create_model(config.model, logit_channels(self.train_set))
        if is_callable_name(config.model):
            check_runs(module, config.model, self.augment.crop)
        if resume:
            last = load_checkpoint(self.folder.last)
            self.folder.init = last.manifest.options.get("init", {})
        elif config.init:
            source = Path(config.init)
            weights = read_weights(source)
            report = load_initial_weights(module, weights.tensors, source)
            self.folder.init = {"source": config.init} | report.to_dict()
            for note in (*weights.notes, f"init from {source}: {report}"):
                display.say(note)
        return module

    def _create_losses(self) -> tuple[WeightedSum, Presence]:
        config, data = self.config, self.train_set
        ignore = ignore_value(count_labels(data.task, len(data.classes)))
        weights = None
        if config.class_weights == "sqrt_median":
            weights = torch.tensor(class_weights(data), device=self.group.device)
        return create_loss(config.loss, data.task, ignore, weights), Presence(data.task, ignore)

    def _plan(self, epoch: int) -> list[list[int]]:
        return plan_epoch(self.config, len(self.train_set), epoch, self.groups)

    def _epochs(self, trainer: Trainer, record: Record) -> None:
        config, progress = self.config, trainer.progress
        transform = TrainTransform(
            self.augment,
            self.preprocess,
            count_labels(self.train_set.task, len(self.train_set.classes)),
        )
        while not self._is_done(progress):
            epoch = progress.epoch
            self._lap()
            batches = self._plan(epoch)
            try:
                result = trainer.train_epoch(
                    create_view(config, self.train_set, transform, epoch),
                    batches,
                    record=record,
                    asked=self._asked,
                    save=lambda: self._save_within(trainer),
                )
            except Interrupted:
                self._save_within(trainer)
                record.display.say(f"stopped at epoch {epoch}; go on with --resume")
                raise KeyboardInterrupt from None
            seconds = progress.seconds + self._lap()
            progress.seconds = 0.0
            times = record.mean_times()
            scores = self.validation.score(trainer.weights(), epoch)
            is_best = progress.record(scores)
            line = {
                "epoch": epoch,
                "loss": result.loss,
                "lr": result.lr,
                **scores,
                "seconds": seconds,
                **times,
                "images_s": len(batches) * config.batch_size / seconds,
                **({"skipped": progress.skipped} if progress.skipped else {}),
            }
            record.end(line)
            self._keep(trainer, is_best=is_best)
        if progress.epoch < config.epochs:
            record.display.say(f"stopped early: no better mIoU in {progress.stale} validations")

    def _asked(self) -> Asked:
        return Asked(self.should_stop(), self.group.is_main and self.folder.is_due())

    def _save_within(self, trainer: Trainer) -> None:
        """Write RUN/last in the middle of an epoch."""
        trainer.progress.seconds += self._lap()
        self.folder.save_last(trainer)

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        start, self._lap_start = self._lap_start, time.perf_counter()
        return self._lap_start - start

    def _is_done(self, progress: Progress) -> bool:
        patience = self.config.patience
        return progress.epoch >= self.config.epochs or 0 < patience <= progress.stale

    def _keep(self, trainer: Trainer, *, is_best: bool) -> None:
        """Write RUN/last, and RUN/checkpoint if this is the best so far (or nothing is scored)."""
        is_kept = is_best or (self._is_done(trainer.progress) and trainer.progress.best < 0)
        if is_kept and self.group.is_main:
            self.folder.save_best(trainer)
        self.folder.save_last(trainer)


def _seed_everything(config: TrainConfig, group: Group) -> None:
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002  foreign code may use the global state
    torch.manual_seed(config.seed)
    is_wanted = config.deterministic
    if is_wanted is None:
        is_wanted = group.device.type == "cpu"
    torch.use_deterministic_algorithms(is_wanted, warn_only=True)
    # Filling fresh memory finds reads of uninitialised values; it decides nothing and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
