"""A training run in its folder: start or resume, epochs, validation, checkpoints, log, stop.

The main rank alone prints and writes. RUN/last is written at the end of every epoch and when the
run is interrupted; RUN/checkpoint whenever validation improves.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segdeploy.backends.predictor import Predictor
from segdeploy.backends.pytorch import ModuleSession
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import ConfigError, DataError
from segdeploy.core.folder import MANIFEST, Checkpoint, load_checkpoint
from segdeploy.core.lock import run_lock
from segdeploy.core.preprocess import model_size
from segdeploy.core.results import EvalResult
from segdeploy.core.task import ignore_value
from segdeploy.core.trust import is_callable_name
from segdeploy.data import TRAIN, VAL, Dataset, open_dataset
from segdeploy.data.transforms import TrainTransform
from segdeploy.frameworks.distributed import Group, is_launched, process_group
from segdeploy.metrics import accumulate, count_labels, label_names
from segdeploy.train.augment import plan_augmentation
from segdeploy.train.batches import loader_errors
from segdeploy.train.config import RECIPE, TrainConfig, check_same_recipe, config_toml
from segdeploy.train.launch import STOP_SIGNAL, launch_ranks
from segdeploy.train.log import EpochLog, TrainingDisplay
from segdeploy.train.loop import (
    Interrupted,
    Trainer,
    class_weights,
    create_view,
    logit_channels,
    plan_epoch,
    to_memory_format,
)
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import WeightedSum, create_loss
from segdeploy.train.state import STATE, Progress, encode_state, load_state
from segdeploy.zoo import create_model
from segdeploy.zoo.checkpoint import save_checkpoint
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
    run = Path(config.out)
    if is_worker or os.environ.get("RANK", "0") != "0":
        return _run_rank(config, resume=resume, signals=_RANK_SIGNALS if is_worker else _SIGNALS)
    _check_start(run, resume=resume)
    if resume:
        check_same_recipe(config)
    with run_lock(run):
        if config.nproc > 1 and not is_launched():
            launch_ranks(config, resume=resume)
            return load_checkpoint(run / "checkpoint")
        return _run_rank(config, resume=resume)


def _check_start(run: Path, *, resume: bool) -> None:
    """Refuse what would destroy or silently change a run, before anything is loaded."""
    if (run / MANIFEST).is_file():
        raise ConfigError(
            f"{run} is one checkpoint or artifact, not a run folder.",
            hint=f"Give --out {run.resolve().parent}, or another folder.",
        )
    exists = (run / "last" / MANIFEST).is_file()
    if resume and not exists:
        raise ConfigError(f"There is nothing to resume in {run}.", hint="Start without --resume.")
    if not resume and exists:
        raise ConfigError(
            f"{run} already holds a training run.",
            hint="Continue it with --resume, or choose another --out.",
        )
    model = run / "checkpoint"
    if not resume and (model / MANIFEST).exists():
        raise ConfigError(
            f"{model} exists already and would be replaced; it was not left by a run that can be "
            "continued.",
            hint="Choose another --out, or remove it yourself.",
        )


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RANK_SIGNALS = (STOP_SIGNAL, signal.SIGTERM)  # Ctrl-C goes to the parent, which sends the first.


def _run_rank(
    config: TrainConfig, *, resume: bool, signals: Sequence[signal.Signals] = _SIGNALS
) -> Checkpoint:
    with (
        process_group(config.device, config.timeout_s) as group,
        _stop_flag(signals) as should_stop,
        loader_errors(),
    ):
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
        self.run = Path(config.out)
        if config.batch_size % group.world:
            raise ConfigError(
                f"batch_size {config.batch_size} is over all processes and not divisible by "
                f"{group.world} of them."
            )
        _seed_everything(config, group)
        self.train_set = open_dataset(config.data, TRAIN)
        self.val_set = _open_validation(config, self.train_set)
        if config.patience and self.val_set is None:
            raise ConfigError(
                f"{config.data} has no validation split to be patient about.",
                hint="Leave --patience out.",
            )
        sample = self.train_set[0]
        size = (sample.image.shape[0], sample.image.shape[1])
        plan = plan_augmentation(config, size)
        self.augment, self.preprocess = plan.augment, plan.preprocess
        self.design_size = model_size(size, self.preprocess)
        self.init: dict[str, Any] = {}  # What was loaded at the start of the run.

    def execute(self, *, resume: bool) -> Checkpoint:
        """Train to the end and return the best checkpoint."""
        config, group = self.config, self.group
        display = TrainingDisplay(config.epochs, is_shown=group.is_main)
        batches = plan_epoch(config, len(self.train_set), 0)
        module = self._create_module(display, resume=resume)
        trainer = Trainer(config, module, *self._create_losses(), group, len(batches))
        log = EpochLog(self.run / "log.jsonl")
        if resume:
            trainer.load_parts(*load_state(self.run / "last"))
            if group.is_main:
                log.truncate(trainer.progress.epoch)
        with display:
            self._epochs(trainer, log, display)
        group.barrier()  # The main rank is still writing what all ranks return.
        return load_checkpoint(self.run / "checkpoint")

    def _create_module(self, display: TrainingDisplay, *, resume: bool) -> nn.Module:
        config = self.config
        module = create_model(config.model, logit_channels(self.train_set))
        if is_callable_name(config.model):
            check_runs(module, config.model, self.augment.crop)
        if resume:
            last = load_checkpoint(self.run / "last")
            self.init = last.manifest.options.get("init", {})
        elif config.init:
            source = Path(config.init)
            weights = read_weights(source)
            report = load_initial_weights(module, weights.tensors, source)
            self.init = {"source": config.init} | report.to_dict()
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

    def _epochs(self, trainer: Trainer, log: EpochLog, display: TrainingDisplay) -> None:
        config, progress = self.config, trainer.progress
        transform = TrainTransform(
            self.augment,
            self.preprocess,
            count_labels(self.train_set.task, len(self.train_set.classes)),
        )
        while not self._is_done(progress):
            epoch = progress.epoch
            started = time.perf_counter()
            batches = plan_epoch(config, len(self.train_set), epoch)
            display.begin(epoch, len(batches), progress.step)
            try:
                result = trainer.train_epoch(
                    create_view(config, self.train_set, transform, epoch),
                    batches,
                    on_step=display.step,
                    should_stop=self.should_stop,
                )
            except Interrupted:
                progress.seconds += time.perf_counter() - started
                self._save_last(trainer)
                display.say(f"stopped at epoch {epoch}; go on with --resume")
                raise KeyboardInterrupt from None
            seconds = progress.seconds + time.perf_counter() - started
            progress.seconds = 0.0
            scores = self._validate(trainer, epoch)
            is_best = progress.record(scores)
            if not self.group.is_main:
                continue
            line = {
                "epoch": epoch,
                "loss": result.loss,
                "lr": result.lr,
                **scores,
                "seconds": seconds,
                "images_s": len(batches) * config.batch_size / seconds,
            }
            self._keep(trainer, is_best=is_best)
            log.append(line)
            display.end(line)
        if progress.epoch < config.epochs:
            display.say(f"stopped early: no better mIoU in {progress.stale} validations")

    def _validate(self, trainer: Trainer, epoch: int) -> dict[str, float | None]:
        """Score the kept weights on the validation split, summed over ranks; {} if not due."""
        config = self.config
        is_due = (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
        if self.val_set is None or not is_due:
            return {}
        num = len(self.val_set) if config.val_limit is None else config.val_limit
        mine = range(self.group.rank, min(num, len(self.val_set)), self.group.world)
        predictor = self._create_predictor(trainer)
        num_ids = count_labels(self.val_set.task, len(self.val_set.classes))
        data = self.val_set
        matrix, _ = accumulate(
            (data[i] for i in mine), lambda image: predictor.predict(image).labels, num_ids
        )
        summed = self.group.sum(torch.from_numpy(matrix.matrix).to(self.group.device))
        result = EvalResult(
            target="pytorch-fp32",
            data=data.name,
            classes=label_names(data.task, data.classes),
            confusion=summed.cpu().numpy(),
            num_images=num,
        )
        return {"mean_iou": result.mean_iou, "pixel_accuracy": result.pixel_accuracy}

    def _create_predictor(self, trainer: Trainer) -> Predictor:
        module = create_model(self.config.model, logit_channels(self.train_set))
        module.load_state_dict(trainer.weights())
        # Faster, and no reference is at stake here.
        to_memory_format(module, torch.channels_last)
        task, classes = self.train_set.task, self.train_set.classes
        tensors = contract_tensors(IoContract(), task, len(classes), None)
        session = ModuleSession(module.eval(), *tensors, device=str(self.group.device))
        return Predictor(session, self.preprocess, task)

    def _is_done(self, progress: Progress) -> bool:
        patience = self.config.patience
        return progress.epoch >= self.config.epochs or 0 < patience <= progress.stale

    def _keep(self, trainer: Trainer, *, is_best: bool) -> None:
        """Write RUN/last, and RUN/checkpoint if this is the best so far (or nothing is scored)."""
        if is_best or (self._is_done(trainer.progress) and trainer.progress.best < 0):
            self._save(self.run / "checkpoint", trainer, {})
        self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        if self.group.is_main:
            state = encode_state(trainer.progress, trainer.state_parts())
            self._save(self.run / "last", trainer, {STATE: state})

    def _save(self, path: Path, trainer: Trainer, companions: dict[str, bytes]) -> None:
        data = self.train_set
        save_checkpoint(
            path,
            trainer.weights(),
            model=self.config.model,
            task=data.task,
            classes=data.classes,
            preprocess=self.preprocess,
            design_size=self.design_size,
            note=self.config.note,
            options={"data": data.name, "best_mean_iou": max(trainer.progress.best, 0.0)}
            | ({"init": self.init} if self.init else {}),
            companions={RECIPE: config_toml(self.config), **companions},
        )


def _open_validation(config: TrainConfig, train_set: Dataset) -> Dataset | None:
    """Return the validation split, or None where the data set has none."""
    try:
        found = open_dataset(config.data, VAL)
    except DataError:
        return None
    if found.classes != train_set.classes:
        raise ConfigError(f"{config.data}: training and validation have different classes.")
    return found


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
