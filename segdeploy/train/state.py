"""RUN/last: everything that an interrupted run needs to go on exactly, written as one folder.

It is a checkpoint like any other, plus `state.pt`: raw weights, optimizer, scaler, average, random
state, position within the epoch and the best metric so far. Read with `weights_only`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segdeploy.core.errors import CheckpointError, DigestMismatchError
from segdeploy.core.folder import check_companion, load_checkpoint

STATE = "state.pt"
_RESTART = "Train again into another folder, or start from RUN/checkpoint with --init."


@dataclass
class Progress:
    """Where a run stands: `epoch` and `step` are the next ones to do (step within the epoch).

    `loss_sum` and `norm_sum` are of the epoch's steps so far, for its mean loss: a batch weighs as
    much as the normaliser of the first term. `stale` counts validations since the `best` one,
    `skipped` iterations that were left out (`train.guard`), and how many of them came last.
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    seconds: float = 0.0
    stale: int = 0
    skipped: int = 0
    skipped_in_row: int = 0

    def record(self, scores: Mapping[str, float | None]) -> bool:
        """Take over the scores of an epoch, {} if not validated; return whether they are best."""
        if "mean_iou" not in scores:
            return False
        score = scores["mean_iou"]
        if score is None or score <= self.best:
            self.stale += 1
            return False
        self.best, self.stale = score, 0
        return True


def encode_state(progress: Progress, parts: dict[str, Any]) -> bytes:
    """Return the content of `state.pt`."""
    buffer = io.BytesIO()
    torch.save({"progress": asdict(progress), **parts}, buffer)
    return buffer.getvalue()


def load_state(last: Path) -> tuple[Progress, dict[str, Any]]:
    """Return what `encode_state` stored in the folder RUN/last.

    Raises:
        CheckpointError: If it is damaged; as `load_checkpoint` if it is missing.
    """
    path = last / STATE
    try:
        check_companion(load_checkpoint(last), STATE)
    except DigestMismatchError as error:
        raise CheckpointError(error.message, hint=_RESTART) from error
    try:
        parts = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**parts.pop("progress")), parts
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
            hint=_RESTART,
        ) from error
