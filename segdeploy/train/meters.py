"""Meters of a training loop: a window and a whole of each number, alike on all ranks when asked.

    meters = MetricLogger()
    for images, labels in meters.log_every(loader, 20, "epoch 1/50"):
        meters.update(len(images), loss=float(loss))
    meters.synchronize(group)
    meters.loss.global_avg

The window forgets: its median shows the present through noise. The global average never does, and
weights each value by its count, so that a short last batch counts for what it is.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from segdeploy.frameworks.distributed import Group

T = TypeVar("T")

_NOTHING = float("nan")
_BYTES_PER_MIB = 2**20


class SmoothedValue:
    """A series of numbers, seen through its last `window` values and as a whole.

    Nothing seen yet is NaN. `form` is what `str` fills in, any of `median`, `avg`, `max`, `value`
    (of the window, each update counting once; `value` is the latest) and `global_avg`.
    """

    def __init__(self, window: int = 20, form: str = "{value:.4f} ({global_avg:.4f})") -> None:
        self.form = form
        self.total, self.count = 0.0, 0.0
        self._window: deque[float] = deque(maxlen=window)
        self._common = (0.0, 0.0)  # The part of (total, count) that all ranks hold already.

    def update(self, value: float, count: float = 1) -> None:
        """Add a value that stands for the mean of `count` things."""
        self._window.append(value)
        self.total += value * count
        self.count += count

    @property
    def median(self) -> float:
        """The median of the window; of an even number, the mean of the two in the middle."""
        return statistics.median(self._window) if self._window else _NOTHING

    @property
    def avg(self) -> float:
        """The mean of the window."""
        return statistics.fmean(self._window) if self._window else _NOTHING

    @property
    def max(self) -> float:
        """The largest value of the window."""
        return max(self._window, default=_NOTHING)

    @property
    def value(self) -> float:
        """The latest value."""
        return self._window[-1] if self._window else _NOTHING

    @property
    def global_avg(self) -> float:
        """The mean of all values, weighted by their counts."""
        return self.total / self.count if self.count else _NOTHING

    def synchronize(self, group: Group) -> None:
        """Make `total` and `count` those of all ranks together; the window stays this rank's."""
        _synchronize([self], group)

    def __str__(self) -> str:
        return self.form.format(
            median=self.median,
            avg=self.avg,
            max=self.max,
            value=self.value,
            global_avg=self.global_avg,
        )


def _synchronize(meters: list[SmoothedValue], group: Group) -> None:
    """Sum over ranks, in one exchange, what each has added since the last one.

    Sums of sums would count the common part once per rank if this were called twice.
    """
    if group.world == 1 or not meters:
        return
    import torch

    own = [(m.total - m._common[0], m.count - m._common[1]) for m in meters]  # noqa: SLF001
    summed = group.sum(torch.tensor(own, dtype=torch.float64, device=group.device)).tolist()
    for meter, (total, count) in zip(meters, summed, strict=True):
        meter._common = meter._common[0] + total, meter._common[1] + count  # noqa: SLF001
        meter.total, meter.count = meter._common  # noqa: SLF001


class MetricLogger:
    """Meters by name, also as attributes, and the loop that prints them.

    Args:
        delimiter: Stands between the meters of a printed line.
        write: Takes a line for people; by default it goes to stderr.
    """

    def __init__(
        self, delimiter: str = "  ", *, write: Callable[[str], object] | None = None
    ) -> None:
        self.meters: dict[str, SmoothedValue] = {}
        self.delimiter = delimiter
        self.write = write or _print

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        """Set the window and the form of a name before its first value."""
        self.meters[name] = meter

    def update(self, count: float = 1, /, **values: float) -> None:
        """Add one value to each named meter, all of the same count."""
        for name, value in values.items():
            self.meters.setdefault(name, SmoothedValue()).update(float(value), count)

    def __getattr__(self, name: str) -> SmoothedValue:
        try:
            return self.__dict__["meters"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"there is no meter '{name}'") from None

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.meters.items())

    def synchronize(self, group: Group) -> None:
        """Do for all meters, which must have the same names on all ranks, as each can itself."""
        _synchronize([self.meters[name] for name in sorted(self.meters)], group)

    def log_every(
        self, items: Iterable[T], print_freq: int, header: str = "", num_items: int | None = None
    ) -> Iterator[T]:
        """Yield the items, timed, and print a line at each `print_freq`-th and the last.

        Adds the meters `data`, seconds of waiting for an item, and `time`, seconds of a whole
        iteration with it. A line tells how far the loop is, the time to its end at the mean pace
        so far, the meters, and of CUDA the largest memory in use. The whole time comes last.

        Args:
            items: What the loop is over.
            print_freq: A line every so many items, from the first on; 0 prints none.
            header: What lines begin with.
            num_items: How many there are, for items without a length.
        """
        total = len(items) if isinstance(items, Sized) else num_items
        begun = end = time.perf_counter()
        number = 0
        for item in items:
            self.update(data=time.perf_counter() - end)
            yield item
            number += 1
            self.update(time=time.perf_counter() - end)
            end = time.perf_counter()
            if print_freq and ((number - 1) % print_freq == 0 or number == total):
                self.write(self._line(header, number, total, end - begun))
        if print_freq:
            spent = end - begun
            self.write(f"{header} total: {_clock(spent)} ({spent / max(1, number):.4f} s / it)")

    def _line(self, header: str, number: int, total: int | None, spent: float) -> str:
        """The line after `number` of `total` items, of which `spent` seconds have gone."""
        width = len(str(total))
        parts = [f"{header} [{number:{width}d}/{'?' if total is None else total}]"]
        if total is not None:
            parts.append(f"eta: {_clock(spent / number * (total - number))}")
        parts.append(str(self))
        if (memory := _memory_mib()) is not None:
            parts.append(f"max mem: {memory:.0f} MiB")
        return self.delimiter.join(parts)


def _print(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _clock(seconds: float) -> str:
    """Return h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _memory_mib() -> float | None:
    """Return the most memory that tensors of this process took on its GPU, None on the CPU."""
    torch = sys.modules.get("torch")  # A loop without torch has no use for it here.
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.max_memory_allocated() / _BYTES_PER_MIB)
