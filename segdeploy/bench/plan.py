"""What a bench run is asked to do, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.core.errors import ConfigError
from segdeploy.core.session import check_device
from segdeploy.frameworks.threads import affinity as own_affinity
from segdeploy.frameworks.threads import cpu_limit_cores, usable_cores

# Even, for whole ABBA pairs; with one call each, the fewest samples that have a 90th percentile.
NUM_BLOCKS = 10
SECONDS, WARM_UP_S, LIMIT_S = 3.0, 5.0, 300.0
THROUGHPUT_S = 2.0
_LONGEST_S = 86_400.0
_MOST = 1024


@dataclass(frozen=True)
class BenchPlan:
    """How to measure. `size` is (H, W) or None for the artifacts' own; times are in seconds.

    `threads` None means all cores that this process may use. `warmup_s` is the longest warm-up; it
    ends when latency is steady. `limit_s` bounds one answer of a worker (opening it, or one block)
    beyond the time it was asked to run, so that a hanging runtime does not hang the run.
    `end_to_end` measures from a uint8 image to its label map, whatever the contract leaves to the
    caller, and books the time on regions.

    `launches` fresh processes per artifact share `seconds`; two launches of one program differ by
    more than their samples do. `batch_sizes` and `streams` ask for throughput, measured after the
    latency (of `batch_size`). `affinity` are the cores that workers run on. `sustained_s` is how
    long each artifact is run on its own at the end. `in_process` needs no worker, and protects
    from nothing.
    """

    size: tuple[int, int] | None = None
    batch_size: int = 1
    threads: int | None = None
    device: str = "cpu"
    seconds: float = SECONDS
    warmup_s: float = WARM_UP_S
    limit_s: float = LIMIT_S
    end_to_end: bool = False
    launches: int = 1
    batch_sizes: tuple[int, ...] = ()
    streams: int = 1
    affinity: tuple[int, ...] | None = None
    sustained_s: float = 0.0
    in_process: bool = False

    def __post_init__(self) -> None:
        if self.size and min(self.size) < 1:
            raise ConfigError(f"The size must be positive, found {self.size[0]}x{self.size[1]}.")
        for size in (self.batch_size, *self.batch_sizes):
            if size < 1:
                raise ConfigError(f"The batch size must be at least 1, found {size}.")
        sizes = {self.batch_size, *self.batch_sizes}
        if self.end_to_end and sizes != {1}:
            raise ConfigError(
                "--end-to-end goes one image at a time, asked was --batch-size "
                f"{','.join(map(str, sorted(sizes)))}.",
                hint="Leave out --end-to-end or --batch-size.",
            )
        check_device(self.device)
        self._check_numbers()
        self._check_cores()

    def _check_numbers(self) -> None:
        for what, number in (
            ("threads", self.threads), ("launches", self.launches), ("streams", self.streams),
        ):  # fmt: skip
            if number is not None and not 1 <= number <= _MOST:
                raise ConfigError(f"The number of {what} must be in 1..{_MOST}, found {number}.")
        for name, value in (
            ("seconds", self.seconds), ("warm-up", self.warmup_s), ("sustained", self.sustained_s),
        ):  # fmt: skip
            if not 0 <= value <= _LONGEST_S:
                raise ConfigError(f"The {name} must be in 0..{_LONGEST_S:.0f} s, found {value}.")
        if self.in_process and self.launches > 1:
            raise ConfigError(
                "A launch is a fresh process, and --in-process has one.",
                hint="Leave out --launches or --in-process.",
            )

    def _check_cores(self) -> None:
        if self.affinity is None:
            return
        found = own_affinity()
        if found is None:
            raise ConfigError("This system cannot bind a process to cores.", hint="No --affinity.")
        if not self.affinity or not set(self.affinity) <= set(found):
            raise ConfigError(
                f"The affinity must be some of the cores {_listed(found)}, found "
                f"{_listed(self.affinity) or 'none'}.",
            )

    @property
    def num_threads(self) -> int:
        """Threads of each runtime: as asked, or the cores that it may use."""
        if self.threads is not None:
            return self.threads
        if self.affinity is None:
            return usable_cores()
        limit = cpu_limit_cores()
        cores = len(set(self.affinity))
        return max(1, min(cores, round(limit))) if limit else cores

    @property
    def throughput_sizes(self) -> tuple[int, ...]:
        """Batch sizes at which throughput is measured; none if it was not asked for."""
        if self.batch_sizes:
            return self.batch_sizes
        return (self.batch_size,) if self.streams > 1 else ()

    @property
    def longest_answer_s(self) -> float:
        """Longest time that one answer of a worker may take."""
        throughput_s = THROUGHPUT_S if self.throughput_sizes else 0.0
        chunk_s = 1.0 if self.sustained_s else 0.0
        return self.limit_s + max(self.seconds, self.warmup_s, throughput_s, chunk_s)


def _listed(cores: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, cores))
