"""The process group of one run: a single process, or ranks started by us, torchrun or SLURM.

Everything that ranks must agree on goes through `Group`: sums, a flag that any rank may raise, an
error that ends all, and the end. A lost rank shows as a failing collective; `process_group` turns
it into a TrainError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore

from segdeploy.core.ending import end_at_once
from segdeploy.core.errors import (
    BackendUnavailableError,
    ConfigError,
    SegDeployError,
    TrainError,
)
from segdeploy.frameworks.launch_env import Launch, read_launch
from segdeploy.frameworks.rendezvous import INTERFACE, Place, find_interface, meet


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

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all ranks, in their order, the same in each of them."""
        if self.world == 1:
            return [item]
        items = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def any(self, flag: bool) -> bool:
        """Return True in all ranks if it is True in one of them."""
        return any(self._exchange(int(flag)))

    def _exchange(self, number: int) -> list[int]:
        """Return the numbers of all ranks."""
        numbers = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        numbers[self.rank] = number
        found: list[int] = self.sum(numbers).tolist()
        return found

    @contextmanager
    def together(self) -> Iterator[Callable[[], None]]:
        """All ranks finish the block, or none of them: an error of one ends all, at one exit code.

        Yields a function that stops this rank if another has failed; all ranks call it equally
        often, before every collective of their own in the block.

        Raises:
            SegDeployError: What this rank raised, or that another rank failed.
        """
        is_told = False

        def check() -> None:
            nonlocal is_told
            codes = self._exchange(0)
            if any(codes):
                is_told = True
                raise _failed_elsewhere(codes)

        try:
            yield check
            check()
        except SegDeployError as error:
            if not is_told:
                error.exit_code = max(self._exchange(error.exit_code))
            raise


def _failed_elsewhere(codes: list[int]) -> SegDeployError:
    failed = [rank for rank, code in enumerate(codes) if code]
    error = SegDeployError(
        f"Rank {', '.join(map(str, failed))} of {len(codes)} failed.",
        hint="See its message.",
    )
    error.exit_code = max(codes)
    return error


def average_in_order(model: nn.parallel.DistributedDataParallel, group: Group) -> None:
    """Let gradients on CPUs be averaged in the order of the ranks, whatever their buckets.

    gloo's ring starts each piece of a bucket at another rank, and DDP orders its buckets anew after
    a first iteration: of three ranks or more, a run that goes on would round otherwise.
    """
    if group.device.type == "cpu" and group.world > 2:
        # DDP would take annotations for wrong where they are strings; a lambda has none.
        model.register_comm_hook(None, lambda _, bucket: _average(group, bucket))


def _average(group: Group, bucket: Any) -> torch.futures.Future[Tensor]:
    """Return the mean over ranks of a `GradBucket`."""
    own = bucket.buffer()
    parts = [torch.empty_like(own) for _ in range(group.world)]
    dist.all_gather(parts, own)
    total = parts[0]
    for part in parts[1:]:
        total += part
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(total.div_(group.world))
    return future


def is_launched() -> bool:
    """Return True in a process that was started as one of several ranks."""
    return read_launch(os.environ).is_shared


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device `cpu`, `cuda` (this rank's GPU) or `auto`.

    Raises:
        BackendUnavailableError: If CUDA is asked for and absent.
        ConfigError: If the name is none of these, or the machine has too few GPUs.
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
    return torch.device("cuda", _pick_gpu(local_rank, torch.cuda.device_count()))


def _pick_gpu(local_rank: int, num_gpus: int) -> int:
    if num_gpus == 1:
        return 0  # A scheduler shows each process its own; `check_places` finds shared ones.
    if local_rank >= num_gpus:
        raise ConfigError(
            f"This process is number {local_rank + 1} on its machine, which has {num_gpus} GPUs.",
            hint=f"Start at most {num_gpus} processes there, or use --device cpu.",
        )
    return local_rank


_JOIN_S = 300.0


@contextmanager
def process_group(device: str, timeout_s: float = 120.0) -> Iterator[Group]:
    """Join the group that the environment describes, or be a single process.

    A collective that fails or outlasts `timeout_s` means that another rank is gone.

    Raises:
        ConfigError: If the ranks do not find each other, or do not fit together.
        TrainError: If another rank is lost.
    """
    launch = read_launch(os.environ)
    chosen = pick_device(device, launch.local_rank)
    if not launch.is_shared:
        yield Group(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        store, place = meet(launch, chosen, min(timeout_s, _JOIN_S))
        _init(launch, chosen, store, place, timeout_s)
        yield Group(launch.rank, launch.world, chosen)
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost_rank(error):
            raise
        raise TrainError(
            f"Rank {launch.rank} of {launch.world} lost the connection to another rank: "
            f"{_in_short(error)}.",
            hint="See the log of the rank that died. The run folder is intact: go on with "
            "--resume.",
        ) from error
    finally:
        _leave()


def _init(
    launch: Launch, device: torch.device, store: PrefixStore, place: Place, timeout_s: float
) -> None:
    """Connect all ranks with each other.

    gloo would listen at the address of the machine's own name, which Debian makes 127.0.1.1; the
    interface that leads to rank 0 is one that all others reach.
    """
    interface = None if device.type == "cuda" else find_interface(place)
    is_ours = interface is not None and INTERFACE not in os.environ
    if is_ours and interface:
        os.environ[INTERFACE] = interface
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world,
            timeout=timedelta(seconds=timeout_s),
        )
    finally:
        if is_ours:
            del os.environ[INTERFACE]


_left: list[Any] = []
"""Groups that were left, alive until the process ends, which it then does at once.

The last reference to a group of gloo joins its threads while it holds the GIL; such a thread may
want the GIL to free the tensors of the last collective. DDP has such a reference, and drops it when
an exception has passed: the rank would then hang for ever. A thread that is alive while Python
ends, again, would abort the process.
"""


def _leave() -> None:
    if dist.is_initialized():
        _left.append(dist.group.WORLD)
        end_at_once()
        try:
            dist.destroy_process_group()
        except RuntimeError:
            return  # The others are gone already.


_SIGNS = (
    "Connection closed", "Connection reset", "Connection refused", "Timed out", "Broken pipe",
    "timeout", "gloo", "NCCL", "Socket",
)  # fmt: skip


def _in_short(error: Exception) -> str:
    """Return the first sentence, without the place in gloo's source that precedes it."""
    return re.sub(r"^\[\S*\] ?", "", str(error).splitlines()[0]).split(". ")[0]


def _is_lost_rank(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in _SIGNS)
