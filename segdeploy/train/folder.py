"""The run folder: what may start there, and the two checkpoints that are written into it.

RUN/last is all that `--resume` needs; RUN/checkpoint is the best by validation. Each is replaced as
a whole (`core.files`), so that a kill at any moment leaves the old one or the new one, and so does
a full disk. RUN/last is written after the first iteration of a start, after every epoch, when the
run is asked to stop, and in the middle of an epoch when it has become `save_minutes` old by the
main rank's clock. So it is there before RUN/checkpoint: a run that has a model can go on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import MANIFEST, Checkpoint, load_checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.data import Dataset
from segdeploy.train.config import RECIPE, TrainConfig, config_toml
from segdeploy.train.loop import Trainer
from segdeploy.train.state import STATE, encode_state
from segdeploy.zoo.checkpoint import save_checkpoint


def check_start(run: Path, *, resume: bool) -> None:
    """Refuse what would destroy or silently change a run, before anything is loaded.

    Raises:
        ConfigError: If there is nothing to resume, or something that would be replaced.
    """
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


@dataclass
class RunFolder:
    """Writes the checkpoints of one run; `init` says what was loaded at its start."""

    config: TrainConfig
    data: Dataset
    preprocess: PreprocessSpec
    design_size: tuple[int, int]
    init: dict[str, Any] = field(default_factory=dict)
    _saved_at: float | None = None

    @property
    def path(self) -> Path:
        """RUN."""
        return Path(self.config.out)

    @property
    def last(self) -> Path:
        """RUN/last."""
        return self.path / "last"

    def load_best(self) -> Checkpoint:
        """Return RUN/checkpoint."""
        return load_checkpoint(self.path / "checkpoint")

    def save_best(self, trainer: Trainer) -> None:
        """Write RUN/checkpoint: the weights that a user deploys."""
        self._save(self.path / "checkpoint", trainer, {})

    def is_due(self) -> bool:
        """Return whether RUN/last has become too old, or was not yet written by this start."""
        if self._saved_at is None:
            return True
        minutes = self.config.save_minutes
        return 0 < 60 * minutes < time.monotonic() - self._saved_at

    def save_last(self, trainer: Trainer) -> None:
        """Write RUN/last: all that the run needs to go on; every rank adds its part."""
        parts = trainer.state_parts()
        if trainer.group.is_main:
            self._save(self.last, trainer, {STATE: encode_state(trainer.progress, parts)})
        self._saved_at = time.monotonic()

    def _save(self, path: Path, trainer: Trainer, companions: dict[str, bytes]) -> None:
        save_checkpoint(
            path,
            trainer.weights(),
            model=self.config.model,
            task=self.data.task,
            classes=self.data.classes,
            preprocess=self.preprocess,
            design_size=self.design_size,
            note=self.config.note,
            options={"data": self.data.name, "best_mean_iou": max(trainer.progress.best, 0.0)}
            | ({"init": self.init} if self.init else {}),
            companions={RECIPE: config_toml(self.config), **companions},
        )
