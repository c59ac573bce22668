"""The books of a call, on a made-up clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import BenchResult
from segdeploy.core.task import Task
from segdeploy.measure.regions import Region, enter, sample_regions


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def spend(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6)


def test_each_moment_belongs_to_one_region_and_the_rest_to_none() -> None:
    clock = Clock()
    waited = []

    def wait() -> None:
        waited.append(True)
        clock.spend(7.0)

    def call() -> None:
        clock.spend(0.5)
        enter(Region.PREPROCESS)
        clock.spend(2.0)
        enter(Region.RUN)
        clock.spend(1.0)
        enter(Region.DEVICE_TO_HOST, wait)  # The device's work belongs to `run`.
        clock.spend(3.0)
        enter(Region.RUN)
        clock.spend(4.0)
        enter(None)
        clock.spend(0.25)

    samples, books = sample_regions(call, 0.03, clock=clock)
    assert samples.ms == [17.75, 17.75]
    assert waited == [True, True]
    assert books == {
        "preprocess": [2.0, 2.0], "host_to_device": [0.0, 0.0], "run": [12.0, 12.0],
        "device_to_host": [3.0, 3.0], "postprocess": [0.0, 0.0],
    }  # fmt: skip


def test_nobody_waits_where_nobody_keeps_books() -> None:
    enter(Region.RUN, lambda: pytest.fail("waited"))


def test_books_are_those_of_the_thread_that_keeps_them() -> None:
    clock = Clock()

    def call() -> None:
        other = threading.Thread(target=enter, args=(Region.PREPROCESS,))
        other.start()
        other.join()
        clock.spend(5.0)

    _, books = sample_regions(call, 0, clock=clock)
    assert books["preprocess"] == [0.0]


def test_books_are_closed_again_after_an_error() -> None:
    def fail() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        sample_regions(fail, 0)
    enter(Region.RUN, lambda: pytest.fail("still keeps books"))


def test_a_results_regions_are_those_of_its_middle_calls() -> None:
    whole = [10.0, 1000.0, 11.0, 12.0, 9.0, 500.0, 11.0, 11.5, 10.5, 11.2]
    result = BenchResult(
        target="t", path="p", samples_ms=whole, batch_size=1, input_shape=(1,),
        peak_memory_mib=None, environment={},
        region_samples_ms={"run": [0.75 * ms for ms in whole], "postprocess": [1.0] * 10},
    )  # fmt: skip
    found = result.regions_ms
    assert found is not None
    assert found["end_to_end"] == pytest.approx((11.0 + 11.2) / 2, abs=0.2)
    assert found["run"] == pytest.approx(0.75 * found["end_to_end"])
    assert found["remainder"] == pytest.approx(0.25 * found["end_to_end"] - 1.0)


def test_the_way_from_an_image_to_its_label_map_is_booked_where_it_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step spends a time of its own; what closes may still be booked on the wrong region."""
    from torch import Tensor, nn

    from segdeploy.backends import predictor
    from segdeploy.backends.pytorch import ModuleSession

    clock = Clock()

    def slow(step: Callable[..., Any], ms: float) -> Callable[..., Any]:
        def spend(*arguments: Any) -> Any:
            clock.spend(ms)
            return step(*arguments)

        return spend

    class Module(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            clock.spend(16.0)
            return image

    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    session = ModuleSession(Module().eval(), inputs, outputs)
    monkeypatch.setattr(session, "_place", slow(session._place, 2.0))
    monkeypatch.setattr(session, "_wait", slow(session._wait, 4.0))  # The device works on.
    for name, ms in (("normalize_image", 1.0), ("predict_labels", 32.0)):
        monkeypatch.setattr(predictor, name, slow(getattr(predictor, name), ms))
    image = np.zeros((8, 12, 3), np.uint8)
    call = predictor.Predictor(session, PreprocessSpec(), Task.MULTICLASS).bind(image)
    samples, books = sample_regions(call, 0, clock=clock)
    assert samples.ms == [59.0]
    assert books == {
        "preprocess": [1.0], "host_to_device": [6.0], "run": [20.0], "device_to_host": [0.0],
        "postprocess": [32.0],
    }  # fmt: skip
