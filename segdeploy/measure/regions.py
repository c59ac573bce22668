"""Where the time of one call goes, as books that close: each moment belongs to one region.

Code on the way from image to label map says which region begins (`enter`). Without a ledger that
costs a look-up of tens of nanoseconds. With one, the regions of a call and its duration come from
the very same call, so that nothing has to be measured twice and subtracted. What no region claims
(before the first, after the last) is the remainder, and is shown.

A GPU works on after a call has returned: `wait` is called before the boundary, else the time of the
convolutions would be booked on the copy that waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from enum import StrEnum
from itertools import pairwise
from time import perf_counter_ns

from segdeploy.measure.clock import Samples, sample_calls


class Region(StrEnum):
    """Parts of a call from image to label map, in order."""

    PREPROCESS = "preprocess"
    HOST_TO_DEVICE = "host_to_device"
    RUN = "run"
    DEVICE_TO_HOST = "device_to_host"
    POSTPROCESS = "postprocess"


Mark = tuple[Region | None, int]


class Ledger:
    """Which region began when; the sums are made once the calls are over."""

    def __init__(self, clock: Callable[[], int] = perf_counter_ns) -> None:
        self._clock = clock
        self._marks: list[Mark] = []
        self._pages: list[list[Mark]] = []

    def enter(self, region: Region | None) -> None:
        """End the region that is open and begin another, or none."""
        self._marks.append((region, self._clock()))

    def turn_page(self) -> None:
        """Begin the next call."""
        self._pages.append(self._marks)
        self._marks = []

    def sums_ms(self) -> dict[str, list[float]]:
        """Return what each region took of each call, in ms."""
        sums = {str(region): [0.0] * len(self._pages) for region in Region}
        for index, page in enumerate(self._pages):
            for (region, begin), (_, end) in pairwise(page):
                if region is not None:
                    sums[region][index] += (end - begin) / 1e6
        return sums


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def is_booked() -> bool:
    """Return whether anybody keeps books of this call."""
    return _ledger.get() is not None


def enter(region: Region | None, wait: Callable[[], None] | None = None) -> None:
    """Say that a region begins (None: that none does), if anybody keeps books.

    Args:
        region: What comes now.
        wait: Returns when the device has done what it was given; called under a ledger only.
    """
    ledger = _ledger.get()
    if ledger is not None:
        if wait is not None:
            wait()
        ledger.enter(region)


def sample_regions(
    call: Callable[[], object],
    seconds: float,
    *,
    at_least: int = 1,
    clock: Callable[[], int] = perf_counter_ns,
) -> tuple[Samples, dict[str, list[float]]]:
    """As `sample_calls`; return also what each region took of each sample, in ms."""
    ledger = Ledger(clock)
    token = _ledger.set(ledger)
    try:
        samples = sample_calls(
            call, seconds, at_least=at_least, clock=clock, after=ledger.turn_page
        )
    finally:
        _ledger.reset(token)
    return samples, ledger.sums_ms()
