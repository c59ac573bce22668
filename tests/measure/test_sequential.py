"""The gate's statistics: against slow loops, SciPy, and thousands of gates on a fake machine."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.fake_machine import FakeMachine
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.measure.sequential import (
    ALPHA,
    LEAST_LAUNCHES,
    MOST_LOOKS,
    Location,
    judge_look,
    launch_ratio,
    locate,
    locate_difference,
    run_looks,
    spend_alpha,
)
from segdeploy.workflows.gate_metrics import judge_launches

LIMIT = 0.03
TROUBLES: dict[str, dict[str, float]] = {
    "quiet": {},
    "launch bias": {"launch_bias": 0.015},
    "drift": {"drift": 0.002},
    "bursts": {"bursts": 0.3},
    "steps": {"steps": 0.1},
    "heavy tails": {"tails": 1.5, "noise": 0.01},
    "all": {
        "launch_bias": 0.012, "drift": 0.001, "bursts": 0.2, "steps": 0.05, "tails": 2.0,
        "noise": 0.01,
    },
}  # fmt: skip


def run_gate(budget_s: float, slowdown: float, seed: int, trouble: str) -> tuple[Verdict, float]:
    """Run the product's own loop and judgement on the fake clock; return verdict and time."""
    machine = FakeMachine(slowdown=slowdown, seed=seed, **TROUBLES[trouble])  # type: ignore[arg-type]
    limits = GateLimits(latency=LIMIT)
    verdicts = []

    def is_decided(alpha: float) -> bool:
        verdicts.append(judge_launches(machine.launches, limits, alpha)[0].verdict)
        return verdicts[-1] is not Verdict.INCONCLUSIVE

    looks = run_looks(machine.sample, is_decided, budget_s, machine.clock)
    assert looks == len(verdicts) <= MOST_LOOKS
    return verdicts[-1], machine.now


@pytest.mark.parametrize("trouble", TROUBLES)
def test_identical_code_is_hardly_ever_a_regression(trouble: str) -> None:
    verdicts = Counter(
        run_gate(60 if seed % 2 else 8, 1.0, seed, trouble)[0] for seed in range(600)
    )
    assert verdicts[Verdict.REGRESSION] + verdicts[Verdict.IMPROVEMENT] <= 6
    assert verdicts[Verdict.PASS] >= 400


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(("slowdown", "share"), [(1 + 2 * LIMIT, 0.95), (1 + 4 * LIMIT, 0.99)])
def test_a_slowdown_is_found_and_never_passes(trouble: str, slowdown: float, share: float) -> None:
    verdicts = Counter(run_gate(60, slowdown, seed, trouble)[0] for seed in range(200))
    assert verdicts[Verdict.REGRESSION] >= share * 200
    assert verdicts[Verdict.PASS] + verdicts[Verdict.IMPROVEMENT] == 0


@pytest.mark.parametrize("trouble", ["launch bias", "bursts", "all"])
def test_too_little_time_says_inconclusive_and_not_pass(trouble: str) -> None:
    verdicts = Counter(run_gate(8, 1 + 2 * LIMIT, seed, trouble)[0] for seed in range(300))
    assert verdicts[Verdict.PASS] + verdicts[Verdict.IMPROVEMENT] <= 3
    assert verdicts[Verdict.INCONCLUSIVE] > 0


def test_a_speed_up_is_an_improvement() -> None:
    verdicts = Counter(run_gate(60, 0.9, seed, "all")[0] for seed in range(100))
    assert verdicts[Verdict.IMPROVEMENT] >= 95
    assert verdicts[Verdict.REGRESSION] == 0


@pytest.mark.parametrize("trouble", ["launch bias", "all"])
def test_the_budget_is_kept(trouble: str) -> None:
    times = [run_gate(20, 1.0 + LIMIT, seed, trouble)[1] for seed in range(30)]
    assert max(times) <= 20
    assert max(times) > 15  # At the limit itself nothing is decided: the time is used.


def test_the_least_launches_run_whatever_the_budget() -> None:
    machine = FakeMachine()
    looks = run_looks(machine.sample, lambda _: False, 0.001, machine.clock)
    assert (looks, len(machine.launches)) == (1, LEAST_LAUNCHES)


def test_no_look_spends_more_than_is_left() -> None:
    machine = FakeMachine()
    spent: list[float] = []

    def is_decided(alpha: float) -> bool:
        spent.append(alpha)
        return False

    run_looks(machine.sample, is_decided, 40, machine.clock)
    assert len(spent) == MOST_LOOKS
    assert all(alpha > 0 for alpha in spent)
    assert sum(spent) == pytest.approx(ALPHA)


def test_error_is_spent_from_nothing_to_all() -> None:
    shares = np.linspace(0, 1, 11)
    spent = [spend_alpha(0.05, share) for share in shares]
    assert spent[0] == 0
    assert spent[-1] == pytest.approx(0.05)
    assert np.all(np.diff(spent) > 0)
    assert spend_alpha(0.05, 1.7) == pytest.approx(0.05)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_the_location_is_the_median_of_pairwise_means(values: list[float]) -> None:
    pairs = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    found = locate(values)
    assert found.value == pytest.approx(median(pairs), abs=1e-12)
    assert found.degrees == len(values) - 1


def test_the_error_is_that_of_a_slow_bootstrap() -> None:
    values = list(np.random.default_rng(3).normal(0, 1, 12))
    random = np.random.default_rng(11)
    slow = []
    for _ in range(4000):
        draw = random.choice(values, 12)
        slow.append(median([(a + b) / 2 for i, a in enumerate(draw) for b in draw[i:]]))
    assert locate(values).error == pytest.approx(np.std(slow) * math.sqrt(12 / 11), rel=0.1)


@pytest.mark.parametrize("launches", [5, 8, 20])
def test_intervals_hold_the_truth_as_often_as_they_say(launches: int) -> None:
    random = np.random.default_rng(launches)
    misses = 0
    for _ in range(1500):
        look = judge_look(locate(list(random.normal(0.2, 0.03, launches))), LIMIT, 0.05)
        misses += not look.low <= math.exp(0.2) <= look.high
    # Binomial bound of 1500 trials at 5 %, 1 in 1000; five launches are known to cost a little.
    assert misses <= stats.binom.ppf(0.999, 1500, 0.05 if launches > 5 else 0.07)


def test_one_disturbed_launch_does_not_move_the_estimate() -> None:
    calm = [0.001, -0.002, 0.0, 0.002, -0.001, 0.001, 0.0, -0.001]
    disturbed = [*calm[:-1], 0.5]
    assert abs(locate(disturbed).value - locate(calm).value) < 0.002
    assert abs(np.mean(disturbed) - np.mean(calm)) > 0.05


def test_launches_are_needed() -> None:
    with pytest.raises(ValueError, match="one launch"):
        locate([0.1])


def test_blocks_are_paired_in_their_order() -> None:
    assert launch_ratio([1, 2, 4, 8], [1.1, 2.2, 4.4, 8.8]) == pytest.approx(math.log(1.1))
    assert launch_ratio([1, 1, 1], [1.1, 1.1, 50]) == pytest.approx(math.log(1.1))
    with pytest.raises(ValueError, match="zip"):
        launch_ratio([1, 2], [1])


def test_a_stored_baseline_of_one_launch_widens_the_interval() -> None:
    own = [0.01, 0.0, -0.01, 0.005, -0.005]
    one, many = locate_difference([0.0], own), locate_difference([0.0, 0.01, -0.01], own)
    assert one.error > many.error > locate(own).error
    assert one.error >= np.std(own, ddof=1)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.0, 0.001, Verdict.PASS),
        (0.02, 0.001, Verdict.PASS),  # Slower for sure, and within the limit.
        (0.06, 0.001, Verdict.REGRESSION),
        (0.06, 0.05, Verdict.INCONCLUSIVE),
        (0.0, 0.05, Verdict.INCONCLUSIVE),
        (-0.06, 0.001, Verdict.IMPROVEMENT),
        (-0.02, 0.001, Verdict.PASS),
        (0.0, 0.0, Verdict.PASS),
    ],
)
def test_verdicts(value: float, error: float, verdict: Verdict) -> None:
    look = judge_look(Location(value, error, 6), LIMIT, ALPHA)
    assert look.verdict is verdict
    assert (look.more_launches is not None) == (verdict is Verdict.INCONCLUSIVE)


def test_a_limit_of_nothing_passes_what_is_equal() -> None:
    assert judge_look(Location(0.0, 0.0, 4), 0.0, ALPHA).verdict is Verdict.PASS
    assert judge_look(Location(0.001, 0.0, 4), 0.0, ALPHA).verdict is Verdict.REGRESSION


def test_the_detectable_effect_is_found_in_four_cases_of_five() -> None:
    random = np.random.default_rng(5)
    error, launches = 0.01, 10
    effect = judge_look(
        Location(0.0, error / math.sqrt(launches), launches - 1), LIMIT, ALPHA
    ).minimal_detectable_effect
    found = 0
    for _ in range(600):
        logs = list(random.normal(math.log1p(effect), error, launches))
        found += judge_look(locate(logs), LIMIT, ALPHA).verdict is Verdict.REGRESSION
    assert 0.72 <= found / 600 <= 0.92
