"""A GPU's own clock beside the host's: does a call really wait until the device has finished?

Latency is taken by the host's clock around a call that synchronises. CUDA events around the same
call, on the legacy default stream, are a check on that: this stream waits for the work of all
blocking streams of the context, so a call that returns too early is longer by events than by the
host. Events are made by the driver, in the primary context, which every runtime uses.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, Protocol

CALLS = 5
"""Calls per block that are timed by both clocks."""
_EARLY = 0.02
_RESOLUTION_MS = 0.05


class DriverLike(Protocol):
    """What is needed of `frameworks.cuda.Driver`."""

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver."""


class EventClock:
    """Two events of one GPU's primary context."""

    def __init__(self, driver: DriverLike, index: int = 0) -> None:
        self._driver = driver
        self._device = ctypes.c_int()
        context = ctypes.c_void_p()
        driver.call("cuDeviceGet", ctypes.byref(self._device), index)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        driver.call("cuCtxSetCurrent", context)
        self._start, self._end = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (self._start, self._end):
            driver.call("cuEventCreate", ctypes.byref(event), 0)

    def time(self, call: Callable[[], object]) -> tuple[float, float]:
        """Return what a call took by the host's clock and by the GPU's, in ms."""
        default = ctypes.c_void_p()
        begin = perf_counter_ns()
        self._driver.call("cuEventRecord", self._start, default)
        call()
        host_ms = (perf_counter_ns() - begin) / 1e6
        self._driver.call("cuEventRecord", self._end, default)
        self._driver.call("cuEventSynchronize", self._end)
        elapsed = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(elapsed), self._start, self._end)
        return host_ms, elapsed.value

    def close(self) -> None:
        """Free the events and let go of the context."""
        for event in (self._start, self._end):
            self._driver.call("cuEventDestroy_v2", event)
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)


def open_event_clock(device: str) -> EventClock | None:
    """Return the clock of `cuda[:N]` or `tensorrt[:N]`; None for the CPU."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return None
    from segdeploy.frameworks.cuda import require_gpu

    driver, _ = require_gpu(int(index or 0), "Timing by events")
    return EventClock(driver, int(index or 0))


def median_event_ms(times: Sequence[Sequence[float]]) -> float | None:
    """Return the median by the GPU's clock, of (host, GPU) pairs in ms."""
    return statistics.median(gpu for _, gpu in times) if times else None


def event_warnings(times: Sequence[Sequence[float]]) -> list[str]:
    """Return what the two clocks say against a call, of (host, GPU) pairs in ms."""
    if not times:
        return []
    host = statistics.median(host for host, _ in times)
    gpu = statistics.median(gpu for _, gpu in times)
    if gpu <= (1 + _EARLY) * host + _RESOLUTION_MS:
        return []
    found = f"The call returns after {host:.2f} ms, but the GPU works for {gpu:.2f} ms"
    return [f"{found}: it does not wait for the device, and its latency is too low."]
