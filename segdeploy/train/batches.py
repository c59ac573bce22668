"""Which samples make which batch: a function of (seed, epoch), not of processes or workers.

Global batch b of an epoch is the b-th slice of one permutation; rank r takes every world-th item
of it, so that any number of processes sees the same global batches. An incomplete last batch is
dropped: a batch of one breaks batch norm over pooled features.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segdeploy.core.errors import ConfigError, TrainError
from segdeploy.data.transforms import TrainingView
from segdeploy.train.grouped import GroupedBatchSampler


def epoch_batches(
    num_samples: int,
    batch_size: int,
    seed: int,
    epoch: int,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the global batches of an epoch, each of `batch_size` sample indices.

    With the group of each sample, a batch is of one group; there are as many as without.

    Raises:
        ConfigError: If there are fewer samples than one batch needs.
    """
    if num_samples < batch_size:
        raise ConfigError(
            f"The training split has {num_samples} images, fewer than the batch size {batch_size}.",
            hint=f"Use --batch-size {num_samples} or less.",
        )
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    if groups is not None:
        return list(GroupedBatchSampler(order.tolist(), groups, batch_size))
    full = num_samples // batch_size
    return [batch.tolist() for batch in order[: full * batch_size].reshape(full, batch_size)]


def create_loader(
    view: TrainingView, batches: list[list[int]], rank: int, world: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of this rank's share of the global batches, in order."""
    return DataLoader(
        view,
        batch_sampler=[batch[rank::world] for batch in batches],
        # Without one of its own it draws from the numbers of dropout, once more at each resume.
        generator=torch.Generator(),
        num_workers=min(workers, num_usable_cores()),
        worker_init_fn=_prepare_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def num_usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # The main process stops after a step, and ends us.


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn the death of a loader process into an error that says what to do.

    Raises:
        TrainError: If one was killed, most often for want of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainError(
            f"A process that reads images has ended: {str(error).splitlines()[0]}",
            hint="Memory may be short: use fewer --workers. If the run had finished an epoch, go "
            "on with --resume.",
        ) from error
