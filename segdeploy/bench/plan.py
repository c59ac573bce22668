"""What a bench run is asked to do, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.core.errors import ConfigError
from segdeploy.core.session import check_device

# Even, for whole ABBA pairs; with one call each, the fewest samples that have a 90th percentile.
NUM_BLOCKS = 10
SECONDS, WARM_UP_S, LIMIT_S = 3.0, 1.0, 300.0
_LONGEST_S = 86_400.0


@dataclass(frozen=True)
class BenchPlan:
    """How to measure. `size` is (H, W) or None for the artifacts' own; times are in seconds.

    `threads` None means all cores that this process may use. `limit_s` bounds one answer of a
    worker (opening it, or one block) beyond the time it was asked to run, so that a hanging
    runtime does not hang the run. `end_to_end` measures from a uint8 image to its label map,
    whatever the contract leaves to the caller.
    """

    size: tuple[int, int] | None = None
    batch_size: int = 1
    threads: int | None = None
    device: str = "cpu"
    seconds: float = SECONDS
    warmup_s: float = WARM_UP_S
    limit_s: float = LIMIT_S
    end_to_end: bool = False

    def __post_init__(self) -> None:
        if self.size and min(self.size) < 1:
            raise ConfigError(f"The size must be positive, found {self.size[0]}x{self.size[1]}.")
        if self.batch_size < 1:
            raise ConfigError(f"The batch size must be at least 1, found {self.batch_size}.")
        if self.end_to_end and self.batch_size != 1:
            raise ConfigError("From image to label map goes one image at a time.")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"The number of threads must be in 1..1024, found {self.threads}.")
        check_device(self.device)
        for name, value in (("seconds", self.seconds), ("warm-up", self.warmup_s)):
            if not 0 <= value <= _LONGEST_S:
                raise ConfigError(f"The {name} must be in 0..{_LONGEST_S:.0f} s, found {value}.")
