"""The GPU's clock beside the host's; here the GPU is made up, on one (`gpu`) it is real."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import pytest

from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.bench.gpu_time import EventClock, event_warnings, median_event_ms, open_event_clock
from segdeploy.core.folder import Checkpoint


class FakeDriver:
    """Events take their time from a clock that the made-up device is moved on by."""

    def __init__(self) -> None:
        self.now_ms = 100.0
        self.recorded: list[float] = []
        self.called: list[str] = []

    def call(self, name: str, *arguments: Any) -> None:
        self.called.append(name)
        if name == "cuEventRecord":
            self.recorded.append(self.now_ms)
        if name == "cuEventElapsedTime":
            elapsed = ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_float))
            elapsed.contents.value = self.recorded[-1] - self.recorded[-2]


def test_events_stand_around_the_call_and_are_waited_for() -> None:
    driver = FakeDriver()
    clock = EventClock(driver)

    def call() -> None:
        driver.called.append("call")
        driver.now_ms += 12.5

    host_ms, gpu_ms = clock.time(call)
    assert gpu_ms == 12.5
    assert host_ms >= 0
    assert driver.called[-5:] == [
        "cuEventRecord", "call", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime",
    ]  # fmt: skip
    clock.close()
    assert driver.called[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_a_call_that_does_not_wait_is_told_from_one_that_does() -> None:
    assert event_warnings([]) == []
    assert median_event_ms([]) is None
    good = [(5.02, 5.0), (5.01, 4.99), (9.0, 9.0)]
    assert event_warnings(good) == []
    assert median_event_ms(good) == 5.0
    (warning,) = event_warnings([(0.2, 5.0), (0.2, 5.1), (0.2, 5.2)])
    assert "does not wait" in warning


def test_the_cpu_has_no_events() -> None:
    assert open_event_clock("cpu") is None


@pytest.mark.gpu
def test_a_call_on_a_gpu_takes_as_long_by_events(tiny_checkpoint: Checkpoint) -> None:
    plan = BenchPlan((64, 96), device="cuda", seconds=0.5, warmup_s=1.0)
    (result,) = measure_interleaved([tiny_checkpoint.path], plan, save=False).results
    assert result.environment["gpu_event_ms"] == pytest.approx(result.latency_ms["p50"], rel=0.1)
    assert not any("does not wait" in text for text in result.environment["warnings"])


@pytest.mark.gpu
def test_work_that_was_not_waited_for_is_seen() -> None:
    import torch

    weights = torch.rand(4096, 4096, device="cuda")
    clock = open_event_clock("cuda")
    assert clock is not None

    def call() -> None:
        for _ in range(50):
            weights @ weights

    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        times.append(clock.time(call))
        time.sleep(0.01)
    clock.close()
    assert event_warnings(times)


@pytest.mark.gpu
def test_the_regions_of_a_gpu_close(tiny_checkpoint: Checkpoint) -> None:
    plan = BenchPlan((64, 96), device="cuda", seconds=0.5, warmup_s=1.0, end_to_end=True)
    (result,) = measure_interleaved([tiny_checkpoint.path], plan, save=False).results
    found = result.regions_ms
    assert found is not None
    assert min(found["host_to_device"], found["run"], found["device_to_host"]) > 0
    assert abs(found["remainder"]) <= 0.02 * found["end_to_end"]
