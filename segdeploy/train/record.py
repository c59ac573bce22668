"""What a run tells while it goes on, and leaves behind for those who look later.

    log.jsonl     a line an epoch: epoch, loss, lr, scores, seconds, data_s, step_s, images_s and,
                  once iterations were left out, skipped: how many so far
    steps.jsonl   a line every `log_every` iterations: epoch, step, loss, lr, data_s, step_s,
                  images_s, grad_norm (before it is clipped)
    val/          pictures of validation samples (`pictures.py`)
    tensorboard/  all of it as event files, if asked for (`tensorboard.py`)

`step` counts the iterations of the whole run from 0; `loss` is that of one global batch. The times
are this rank's means over the iterations since the line before: `data_s` waiting for a batch,
`step_s` working on it. In log.jsonl they are means over the epoch and all ranks.

Lines come before the checkpoint that follows them, and those after it are dropped when a run goes
on: whatever kills it, there is no gap and nothing twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from segdeploy.data.images import read_image
from segdeploy.frameworks.distributed import Group
from segdeploy.train.config import TrainConfig, config_toml
from segdeploy.train.log import JsonLines, TrainingDisplay
from segdeploy.train.meters import MetricLogger, SmoothedValue
from segdeploy.train.pictures import picture_path, prune_pictures
from segdeploy.train.state import Progress
from segdeploy.train.tensorboard import Board

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One iteration: its loss, of a batch that weighs `norm`, and what it was done with.

    `grad_norm` is the 2-norm of all gradients before they were clipped.
    """

    loss: float
    norm: float
    lr: float
    grad_norm: float


class Record:
    """The log of a run; only the main rank writes and prints, all of them measure.

    Args:
        config: The recipe.
        run: The run folder.
        group: The processes that train together.
        num_batches: Iterations per epoch.
        display: What people see.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        group: Group,
        num_batches: int,
        display: TrainingDisplay,
    ) -> None:
        self.config, self.run, self.group = config, run, group
        self.num_batches, self.display = num_batches, display
        self.meters = MetricLogger(write=display.line)
        self._epochs = JsonLines(run / "log.jsonl", "epoch")
        self._steps = JsonLines(run / "steps.jsonl", "step")
        self._board: Board | None = None
        self._arrived = 0.0

    def begin(self, progress: Progress) -> None:
        """Drop what comes after `progress`, and open the event files."""
        if not self.group.is_main:
            return
        step = self._number(progress)
        self._epochs.truncate(progress.epoch)
        self._steps.truncate(step)
        if self.config.tensorboard and progress.epoch < self.config.epochs:
            recipe = config_toml(self.config).decode()
            self._board = Board(self.run / "tensorboard", step, progress.epoch, recipe)

    def batches(self, loader: Iterable[T], num: int, progress: Progress) -> Iterator[T]:
        """Yield the `num` batches that an epoch still has, and take the time."""
        self.meters = self._create_meters()
        self.display.begin(progress.epoch, self.num_batches, progress.step)
        freq = self.config.log_every if num > self.config.log_every else 0
        header = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        for batch in self.meters.log_every(loader, freq, header, num):
            self._arrived = time.perf_counter()
            yield batch

    def _create_meters(self) -> MetricLogger:
        meters, window = MetricLogger(write=self.display.line), self.config.log_every
        meters.add_meter("loss", SmoothedValue(window, "{avg:.4f} ({global_avg:.4f})"))
        meters.add_meter("lr", SmoothedValue(1, "{value:.2e}"))
        meters.add_meter("images_s", SmoothedValue(window, "{median:.1f}"))
        for name in ("data", "step", "time"):
            meters.add_meter(name, SmoothedValue(window, "{avg:.3f}"))
        return meters

    def step(self, progress: Progress, step: Step) -> None:
        """Take in the iteration at `progress`, before it moves on."""
        meters = self.meters
        spent = time.perf_counter() - self._arrived
        meters.update(step.norm, loss=step.loss)
        rate = self.config.batch_size / (meters.data.value + spent)
        meters.update(lr=step.lr, step=spent, images_s=rate)
        self.display.step(step.loss)
        number = self._number(progress)
        if self.group.is_main and number % self.config.log_every == 0:
            self._write_step(progress.epoch, number, step)

    def skip(self, note: str) -> None:
        """Take in an iteration that was left out, and why."""
        self.display.step(math.nan)
        self.display.say(note)

    def _write_step(self, epoch: int, number: int, step: Step) -> None:
        data_s, step_s = self.meters.data.avg, self.meters.step.avg
        values = {"loss": step.loss, "lr": step.lr, "data_s": data_s, "step_s": step_s,
                  "images_s": self.config.batch_size / (data_s + step_s),
                  "grad_norm": step.grad_norm}  # fmt: skip
        self._steps.append({"epoch": epoch, "step": number, **values})
        if self._board is not None:
            self._board.add_step(number, values)

    def mean_times(self) -> dict[str, float]:
        """Return data_s and step_s of the epoch over all ranks; each of them must call."""
        self.meters.synchronize(self.group)
        means = {"data_s": self.meters.data.global_avg, "step_s": self.meters.step.global_avg}
        return means if self.meters.step.count else {}

    def end(self, line: Mapping[str, Any]) -> None:
        """Write the line of an epoch, whose picture is in place, before its checkpoint."""
        if not self.group.is_main:
            return
        epoch = line["epoch"]
        self._epochs.append(line)
        prune_pictures(self.run, self._best_epoch())
        self.display.end(line)
        if self._board is not None:
            path = picture_path(self.run, epoch)
            numbers = {k: v for k, v in line.items() if k != "epoch" and v is not None}
            self._board.add_epoch(epoch, numbers, read_image(path) if path.exists() else None)

    def _best_epoch(self) -> int | None:
        """Return the first epoch with the best mIoU so far."""
        scored = [line for line in self._epochs.read() if line.get("mean_iou") is not None]
        best = max(scored, key=lambda line: line["mean_iou"], default=None)
        return None if best is None else best["epoch"]

    def _number(self, progress: Progress) -> int:
        return progress.epoch * self.num_batches + progress.step

    def __enter__(self) -> Self:
        self.display.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.__exit__(kind, error, trace)
        if self._board is not None:
            self._board.close()
