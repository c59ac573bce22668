"""What happens to an iteration whose loss or gradients are not finite.

Nothing of it reaches the weights. `on_nan` "stop" ends the run, with the batch in a file for
inspection: RUN/bad_batch.pt (of another rank than 0, bad_batch_RANK.pt), a dictionary that
`torch.load(..., weights_only=True)` reads: images, labels, indices and names of the samples, epoch,
step, loss. "skip" leaves the iteration out: weights, optimizer, average and norm statistics stay,
the schedule goes on. Losses and (averaged) gradients are those of all ranks, so that all decide
alike. Infinite gradients while a `GradScaler` still looks for its scale are none of this.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segdeploy.core.errors import ArtifactError, TrainError
from segdeploy.core.files import write_bytes
from segdeploy.data import Dataset
from segdeploy.frameworks.distributed import Group
from segdeploy.train.config import TrainConfig
from segdeploy.train.state import Progress

MOST_SKIPS = 20
"""So many iterations in a row that are not finite end a run with `on_nan` "skip" too."""


@dataclass(frozen=True)
class BadStep:
    """An iteration that cannot be used: a rank's part of the batch, and what came of it.

    `images` (N, C, H, W) and `labels` of the samples `indices`; `loss` and `grad_norm` over all
    ranks; `is_own` says whether this rank's part of the loss is not finite.
    """

    images: Tensor
    labels: Tensor
    indices: Sequence[int]
    loss: float
    grad_norm: float
    is_own: bool

    def describe(self, progress: Progress) -> str:
        """Return what is wrong, and where."""
        what = f"The norm of the gradients is {self.grad_norm}"
        if not math.isfinite(self.loss):
            what = f"The loss is {self.loss}"
        return f"{what} at epoch {progress.epoch}, step {progress.step}"


class Guard:
    """Leaves bad iterations out, or ends the run; of each run there is one in each rank."""

    def __init__(self, config: TrainConfig, module: nn.Module, group: Group) -> None:
        self.config, self.module, self.group = config, module, group
        self._kept: list[Tensor] = []
        self._listed: set[str] = set()

    def keep(self) -> None:
        """Remember what a forward pass changes: the statistics of norms."""
        if self.config.on_nan == "skip":
            self._kept = [buffer.clone() for buffer in self.module.buffers()]

    def refuse(self, bad: BadStep, progress: Progress, samples: Dataset) -> str:
        """Undo an iteration and return what to tell; all ranks must call.

        Raises:
            TrainError: If the run shall stop, or nothing but bad iterations came for a while.
        """
        progress.skipped += 1
        progress.skipped_in_row += 1
        own = self.group.gather(bad.is_own)
        is_blamed = bad.is_own or not any(own)  # Of gradients nobody knows whose they are.
        names = [samples[i].name for i in bad.indices] if is_blamed else []
        if self.config.on_nan == "stop" or progress.skipped_in_row >= MOST_SKIPS:
            self._stop(bad, progress, names)
        for buffer, value in zip(self.module.buffers(), self._kept, strict=True):
            buffer.copy_(value)
        found = [name for part in self.group.gather(names) for name in part]
        new = [name for name in found if name not in self._listed]
        self._listed.update(new)
        told = f" Images: {', '.join(new)}." if new else ""
        return f"{bad.describe(progress)}: left out, {progress.skipped} so far.{told}"

    def _stop(self, bad: BadStep, progress: Progress, names: list[str]) -> None:
        saved = self._save(bad, progress, names) if names else ""
        places = ", ".join(filter(None, self.group.gather(saved)))
        many = f", the {progress.skipped_in_row}th in a row" if progress.skipped_in_row > 1 else ""
        raise TrainError(
            f"{bad.describe(progress)}{many}. The batch: {places}.",
            hint="Lower --lr, or train without --amp fp16. If RUN/last exists, the run can go on "
            "from there: with --resume --on-nan skip without such batches.",
        )

    def _save(self, bad: BadStep, progress: Progress, names: list[str]) -> str:
        """Write the batch for inspection; return its path, or why there is none."""
        rank = self.group.rank
        path = Path(self.config.out) / (f"bad_batch_{rank}.pt" if rank else "bad_batch.pt")
        content = io.BytesIO()
        found = {
            "images": bad.images.cpu(), "labels": bad.labels.cpu(), "indices": list(bad.indices),
            "names": names, "epoch": progress.epoch, "step": progress.step, "loss": bad.loss,
            "grad_norm": bad.grad_norm,
        }  # fmt: skip
        torch.save(found, content)
        try:
            write_bytes(path, content.getvalue())
        except ArtifactError as error:  # The first trouble is the one to tell.
            return f"not kept ({error.message})"
        return str(path)
