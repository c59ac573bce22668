"""Steady or not, on traces whose answer is known; the clock is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeploy.measure.steady import (
    LEAST_BLOCKS,
    WarmUp,
    _noise,
    find_steady,
    warm_up_until_steady,
    warm_up_warnings,
)

BLOCK_S = 0.05
TIMES = np.arange(100) * BLOCK_S
NOISES = (0.0, 0.005, 0.02)


def noisy(values: NDArray[np.floating[Any]], noise: float, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(v) for v in values * (1 + noise * rng.standard_normal(len(values)))]


@pytest.mark.parametrize("noise", NOISES)
def test_a_step_is_found_at_its_block(noise: float) -> None:
    step = np.where(TIMES < 0.8, 13.0, 10.0)
    assert [find_steady(noisy(step, noise, seed)) for seed in range(50)].count(16) >= 48


@pytest.mark.parametrize("noise", NOISES)
def test_what_settles_is_steady_once_it_is_within_the_tolerance(noise: float) -> None:
    settling = 10 * (1 + 0.3 * np.exp(-TIMES / 0.5))
    found = [find_steady(noisy(settling, noise, seed)) for seed in range(50)]
    known = [index for index in found if index is not None]
    assert len(known) >= 45  # Noise of 2 % looks like a change now and then.
    assert max(settling[index] for index in known) < 1.1 * 10
    assert settling[int(np.median(known)) - 12] > 1.02 * 10, "not later than needed"


@pytest.mark.parametrize("noise", NOISES)
def test_a_drift_is_never_steady(noise: float) -> None:
    assert all(find_steady(noisy(10 * (1 + 0.2 * TIMES), noise, s)) is None for s in range(50))


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02, 0.05])
def test_noise_alone_is_steady_from_the_start(noise: float) -> None:
    found = [find_steady(noisy(np.full(100, 10.0), noise, seed)) for seed in range(400)]
    assert found.count(0) >= 392


def test_noise_is_the_standard_deviation_of_white_noise() -> None:
    white = np.random.default_rng(0).normal(10.0, 0.3, 100_000)
    assert _noise(white) == pytest.approx(0.3, rel=0.05)
    assert _noise(white + np.linspace(0.0, 5.0, white.size)) == pytest.approx(0.3, rel=0.05)


def test_one_slow_block_is_no_change_and_a_late_step_is_not_steady_yet() -> None:
    trace = noisy(np.full(60, 10.0), 0.01, 0)
    spiked = [*trace[:30], 40.0, *trace[31:]]
    assert find_steady(spiked) == 0
    assert find_steady([*trace[:55], *(1.3 * each for each in trace[55:])]) is None


def test_few_blocks_say_nothing() -> None:
    assert find_steady([10.0] * (LEAST_BLOCKS - 1)) is None
    assert find_steady([10.0] * LEAST_BLOCKS) == 0


class FakeMachine:
    """A clock that a call moves on, by a time that depends on when it is made."""

    def __init__(self, duration_ms: Callable[[float], float]) -> None:
        self.now_ns = 5_000_000_000
        self._duration_ms = duration_ms

    def clock(self) -> int:
        return self.now_ns

    def call(self) -> None:
        self.now_ns += round(1e6 * self._duration_ms((self.now_ns - 5_000_000_000) / 1e9))


def test_a_warm_up_ends_when_steady_and_says_after_what() -> None:
    machine = FakeMachine(lambda at_s: 10.0 if at_s < 0.8 else 5.0)
    found = warm_up_until_steady(machine.call, 10.0, clock=machine.clock)
    assert found.steady_after_s == pytest.approx(0.8, abs=0.02)
    assert found.steady_after_calls == 80
    assert 1.0 < found.seconds < 2.0


def test_a_warm_up_takes_its_cap_where_nothing_settles() -> None:
    machine = FakeMachine(lambda at_s: 5.0 * (1 + 0.5 * at_s))
    found = warm_up_until_steady(machine.call, 3.0, clock=machine.clock)
    assert found.steady_after_s is None
    assert found.steady_after_calls is None
    assert 3.0 <= found.seconds < 3.2
    (warning,) = warm_up_warnings([asdict(found)])
    assert warning.startswith("Never steady: block medians still changed after 3.")


def test_too_few_calls_are_not_judged() -> None:
    machine = FakeMachine(lambda _: 2000.0)
    found = warm_up_until_steady(machine.call, 5.0, clock=machine.clock)
    assert (found.calls, found.is_judged, found.steady_after_s) == (3, False, None)
    assert not warm_up_warnings([asdict(found)])


def test_unsteady_launches_are_counted() -> None:
    bad = asdict(WarmUp(5.0, 100, None, None, is_judged=True))
    good = asdict(WarmUp(1.0, 20, 0.0, 0, is_judged=True))
    assert not warm_up_warnings([good, good])
    (warning,) = warm_up_warnings([good, bad, good])
    assert "in 1 of 3 launches" in warning


def test_without_time_there_is_one_call() -> None:
    machine = FakeMachine(lambda _: 1.0)
    assert warm_up_until_steady(machine.call, 0.0, clock=machine.clock).calls == 1
