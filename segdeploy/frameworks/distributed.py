"""The process group of one run: a single process, or ranks started by us or by torchrun.

Everything that ranks must agree on goes through `Group`: sums, a flag that any rank may raise, and
the end. A lost rank shows as a failing collective; `process_group` turns it into a TrainError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from segdeploy.core.errors import BackendUnavailableError, ConfigError, TrainError


@dataclass(frozen=True)
class Group:
    """Rank r of `world` processes, working on `device`."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, in place; a single process returns it unchanged."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def is_launched() -> bool:
    """Return True in a process that torchrun (or our own launcher) started as a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def pick_device(name: str) -> torch.device:
    """Return the device `cpu`, `cuda` (this rank's GPU) or `auto`.

    Raises:
        BackendUnavailableError: If CUDA is asked for and absent.
        ConfigError: If the name is none of these.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"Unknown device '{name}'.", hint="Use auto, cpu or cuda.")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise BackendUnavailableError(
            "CUDA was asked for, but torch sees no GPU.",
            hint="Use --device cpu, or install a CUDA build of torch and a driver.",
        )
    if name == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: str, timeout_s: float = 120.0) -> Iterator[Group]:
    """Join the group that the environment describes, or be a single process.

    A collective that fails or outlasts `timeout_s` means that another rank is gone.

    Raises:
        TrainError: If another rank is lost.
    """
    chosen = pick_device(device)
    if not is_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Group(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        yield Group(rank, world, chosen)
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost_rank(error):
            raise
        raise TrainError(
            f"Rank {rank} of {world} lost the connection to another rank: "
            f"{str(error).splitlines()[0]}",
            hint="See the log of the rank that died. The run folder is intact: go on with "
            "--resume.",
        ) from error
    finally:
        _leave()


def _leave() -> None:
    if dist.is_initialized():
        try:
            dist.destroy_process_group()
        except RuntimeError:
            return  # The others are gone already.


_SIGNS = (
    "Connection closed", "Connection reset", "Connection refused", "Timed out", "Broken pipe",
    "timeout", "gloo", "NCCL", "Socket",
)  # fmt: skip


def _is_lost_rank(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in _SIGNS)
