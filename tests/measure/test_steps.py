"""Steps of a history: against an exhaustive search, and how often noise alone looks like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeploy.measure.steps import (
    LEAST_SEGMENT,
    find_steps,
    levels,
    noise_of,
    partition,
    penalty,
    segment_costs,
)

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]
NOISES: dict[str, Noise] = {
    "normal": lambda rng, count: rng.standard_normal(count),
    "laplace": lambda rng, count: rng.laplace(size=count),
    "heavy tails": lambda rng, count: rng.standard_t(3, size=count),
}


def all_partitions(start: int, count: int) -> Iterator[list[int]]:
    """Every way to cut start..count-1 into segments of at least three, as lists of their ends."""
    for end in range(start + LEAST_SEGMENT, count + 1):
        if end == count:
            yield [end]
        else:
            for rest in all_partitions(end, count):
                yield [end, *rest]


def slow_cost(values: Sequence[float], ends: Sequence[int], per_step: float) -> float:
    total, start = per_step * (len(ends) - 1), 0
    for end in ends:
        part = sorted(values[start:end])
        middle = part[len(part) // 2]
        total += sum(abs(value - middle) for value in part)
        start = end
    return total


@pytest.mark.parametrize("seed", range(12))
def test_the_partition_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 15))
    values = rng.standard_t(3, count) + 6 * (np.arange(count) >= rng.integers(0, count))
    per_step = float(rng.uniform(0.5, 6))
    found = partition(segment_costs(values), per_step)
    best = min(all_partitions(0, count), key=lambda ends: slow_cost(list(values), ends, per_step))
    assert slow_cost(list(values), found, per_step) == pytest.approx(
        slow_cost(list(values), best, per_step)
    )


@pytest.mark.parametrize("kind", NOISES)
def test_stationary_noise_has_a_step_in_at_most_one_history_of_a_hundred(kind: str) -> None:
    rng = np.random.default_rng(5)
    found = 0
    num_histories = 0
    for count, repeats in ((8, 200), (15, 200), (30, 200), (60, 100)):
        for _ in range(repeats):
            values = 8 * np.exp(0.02 * NOISES[kind](rng, count))
            found += bool(find_steps(list(values)))
            num_histories += 1
    assert found <= num_histories // 100


@pytest.mark.parametrize("kind", NOISES)
def test_a_step_of_six_noises_is_found_where_it_is(kind: str) -> None:
    rng = np.random.default_rng(7)
    right = 0
    for _ in range(50):
        values = 8 * np.exp(0.02 * NOISES[kind](rng, 30) + 0.12 * (np.arange(30) >= 20))
        steps = find_steps(list(values))
        if len(steps) == 1:
            right += steps[0].first <= 20 <= steps[0].last
    assert right >= 45


def test_a_clean_step_has_its_place_and_its_ratio() -> None:
    values = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 11.2, 11.3, 11.1, 11.2, 11.3]
    (step,) = find_steps(values)
    assert (step.place, step.first, step.last) == (6, 6, 6)
    assert step.ratio == pytest.approx(11.2 / 10.0)
    assert levels(values, [step]) == [pytest.approx(10.0)] * 6 + [pytest.approx(11.2)] * 5


@pytest.mark.parametrize("at", [0, 1, 10, 18, 19])
def test_one_wild_run_is_no_step(at: int) -> None:
    rng = np.random.default_rng(at)
    values = 8 * np.exp(0.01 * rng.standard_normal(20))
    values[at] *= 3
    assert find_steps(list(values)) == []


def test_a_step_shows_by_its_third_entry() -> None:
    quiet = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 10.1, 9.9, 10.0]
    assert find_steps([*quiet, 13.0]) == []
    (step,) = find_steps([*quiet, 13.0, 13.1, 12.9])
    assert step.place == 9


def test_up_and_down_are_two_steps_and_short_or_constant_histories_have_none() -> None:
    values = [10.0, 10.1, 9.9, 10.0, 10.1, 12.0, 12.1, 11.9, 12.0, 12.1, 9.0, 9.1, 8.9, 9.0]
    assert [round(step.ratio, 1) for step in find_steps(values)] == [1.2, 0.8]
    assert find_steps([1.0, 1.0, 5.0, 5.0, 5.0]) == []
    assert find_steps([3.0] * 30) == []


def test_steps_too_small_to_matter_are_not_told_and_long_histories_keep_their_places() -> None:
    values = [10.0, 10.001] * 300
    values[500:] = [value * 1.005 for value in values[500:]]
    assert find_steps(values) == []
    (step,) = find_steps(values, least_change=0.002)
    assert step.place == 500


def test_noise_is_not_moved_by_a_step_and_few_entries_need_more() -> None:
    rng = np.random.default_rng(1)
    logs = 0.02 * rng.standard_normal(400)
    assert noise_of(logs) == pytest.approx(0.02, rel=0.2)
    assert noise_of(logs + (np.arange(400) > 200)) == pytest.approx(noise_of(logs), rel=0.02)
    assert penalty(6) > penalty(100) > 8
