"""The gate's statistics: against slow loops, SciPy, and thousands of gates on a fake machine."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.fake_machine import BLOCK_S, START_S, WARM_S, FakeMachine
from benchmarks.gate_simulation import TROUBLES
from segdeploy.bench.pairs import NUM_PAIRS, Launch, Side
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.measure.sequential import (
    FALSE_ALARM,
    FALSE_PASS,
    LEAST_LAUNCHES,
    LOOK_SHARES,
    MOST_LOOKS,
    Location,
    Look,
    judge_look,
    locate,
    locate_difference,
    pair_ratios,
    run_looks,
)
from segdeploy.workflows.gate_metrics import Decisions, judge_launches

LIMIT = 0.03


def run_gate(budget_s: float, slowdown: float, seed: int, trouble: str) -> tuple[Verdict, float]:
    """Run the product's own loop and judgement on the fake clock; return verdict and time."""
    machine = FakeMachine(slowdown=slowdown, seed=seed, **TROUBLES[trouble])
    limits = GateLimits(latency=LIMIT)
    verdicts = []

    def is_decided(share: float) -> bool:
        verdicts.append(judge_launches(machine.launches, limits, share)[0].verdict)
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


@pytest.mark.parametrize("trouble", ["launch bias 1.5 %", "bursts", "all of these"])
def test_too_little_time_says_inconclusive_and_not_pass(trouble: str) -> None:
    verdicts = Counter(run_gate(1, 1 + 2 * LIMIT, seed, trouble)[0] for seed in range(300))
    assert verdicts[Verdict.PASS] + verdicts[Verdict.IMPROVEMENT] <= 3
    assert verdicts[Verdict.INCONCLUSIVE] > 0


def test_a_speed_up_is_an_improvement() -> None:
    verdicts = Counter(run_gate(60, 0.9, seed, "all of these")[0] for seed in range(100))
    assert verdicts[Verdict.IMPROVEMENT] >= 95
    assert verdicts[Verdict.REGRESSION] == 0


@pytest.mark.parametrize("trouble", ["launch bias 1.5 %", "all of these"])
def test_the_budget_is_kept(trouble: str) -> None:
    """Of sampling; what a launch costs beside it is known of the fake machine."""
    times = [run_gate(20, 1.0 + LIMIT, seed, trouble)[1] for seed in range(30)]
    per_launch = 2 * (START_S + WARM_S) + 2 * NUM_PAIRS * BLOCK_S
    sampling = 2 * WARM_S + 2 * NUM_PAIRS * BLOCK_S
    most = int(20 / sampling) * per_launch
    assert max(times) <= most + 1e-6
    assert max(times) > 0.8 * most  # At the limit itself nothing is decided: the time is used.


def test_slow_starts_may_only_double_the_budget() -> None:
    machine = FakeMachine()

    def sample() -> float:
        machine.now += 5.0  # As an eager model with its imports.
        return machine.sample()

    run_looks(sample, lambda _: False, 60, machine.clock)
    assert 100 < machine.now <= 120


def test_the_least_launches_run_whatever_the_budget() -> None:
    machine = FakeMachine()
    looks = run_looks(machine.sample, lambda _: False, 0.001, machine.clock)
    assert (looks, len(machine.launches)) == (1, LEAST_LAUNCHES)


@pytest.mark.parametrize(("budget_s", "looks"), [(1, 1), (4, 2), (40, 5)])
def test_every_look_spends_its_share(budget_s: float, looks: int) -> None:
    machine = FakeMachine()
    spent: list[float] = []

    def is_decided(share: float) -> bool:
        spent.append(share)
        return False

    run_looks(machine.sample, is_decided, budget_s, machine.clock)
    assert spent == [LOOK_SHARES[looks - 1]] * looks


@pytest.mark.parametrize("looks", range(1, MOST_LOOKS + 1))
def test_all_looks_together_err_as_seldom_as_one(looks: int) -> None:
    """Normal launches, as many more at each look: the least correlated case, Pocock's own."""
    sums = np.random.default_rng(looks).normal(size=(400_000, looks)).cumsum(axis=1)
    scores = sums / np.sqrt(np.arange(1, looks + 1))
    limit = stats.norm.ppf(1 - FALSE_ALARM * LOOK_SHARES[looks - 1])
    assert np.mean((scores > limit).any(axis=1)) <= 1.1 * FALSE_ALARM


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_the_location_is_the_mean_of_the_middle_half(num: int, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(num, size))
    found = locate(values.tolist())
    assert found.value == pytest.approx(stats.trim_mean(values.ravel(), 0.25), abs=1e-12)
    assert found.degrees == num - 1


@pytest.mark.parametrize(("launches", "within"), [(5, 0.06), (12, 0.1)])
def test_the_error_is_that_of_a_slow_bootstrap(launches: int, within: float) -> None:
    """Widened: without it, five launches would be 10.6 % too sure."""
    values = np.random.default_rng(3).normal(0, 1, (launches, 2))
    random = np.random.default_rng(11)
    slow = []
    for _ in range(4000):
        draw = [values[random.integers(launches)] for _ in range(launches)]
        slow.append(stats.trim_mean(np.concatenate(draw), 0.25))
    widened = np.std(slow) * math.sqrt(launches / (launches - 1))
    assert locate(values.tolist()).error == pytest.approx(widened, rel=within)


def test_the_error_of_a_look_is_shared_and_what_is_decided_stays() -> None:
    machine = FakeMachine(launch_bias=0.004)
    for _ in range(5):
        machine.sample()
    for launch in machine.launches:
        for side in (launch.baseline, launch.candidate):
            assert side is not None
            side.memory_mib = float(np.exp(machine.random.normal(0, 0.3)))
    decisions = Decisions(GateLimits(latency=LIMIT, memory=LIMIT))
    assert not decisions.look(machine.launches, 1.0)
    alone = judge_launches(machine.launches, GateLimits(latency=LIMIT), 0.5)[0]
    latency, memory = decisions.metrics
    assert latency.ratio_ci == alone.ratio_ci
    assert (latency.verdict, memory.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert not decisions.look(machine.launches, 1e-9)  # Too little to decide anything anew.
    assert decisions.metrics[0] == latency


def test_a_regression_ends_the_gate() -> None:
    machine = FakeMachine(slowdown=2.0)
    for _ in range(5):
        machine.sample()
    decisions = Decisions(GateLimits(latency=LIMIT, memory=LIMIT))
    for index, launch in enumerate(machine.launches):
        for side in (launch.baseline, launch.candidate):
            assert side is not None
            side.memory_mib = 100.0 * (1 + index)
        launch.candidate.memory_mib = 100.0 * (5 - index)
    assert decisions.look(machine.launches, 1.0)
    assert decisions.metrics[0].verdict is Verdict.REGRESSION


@pytest.mark.parametrize("launches", [5, 8, 20])
def test_intervals_hold_the_truth_as_often_as_they_say(launches: int) -> None:
    random = np.random.default_rng(launches)
    misses = 0
    for _ in range(1500):
        look = judge_look(locate(random.normal(0.2, 0.03, (launches, 1)).tolist()), LIMIT, 1.0)
        misses += not look.low <= math.exp(0.2) <= look.high
    # Binomial bound of 1500 trials, 1 in 1000; five launches are known to cost a little.
    error = FALSE_ALARM + FALSE_PASS
    assert misses <= stats.binom.ppf(0.999, 1500, error if launches > 5 else 1.4 * error)


def test_disturbed_blocks_do_not_move_the_estimate() -> None:
    calm = [[0.001, -0.002], [0.0, 0.002], [-0.001, 0.001], [0.0, -0.001], [0.001, 0.0]]
    disturbed = [[0.001, 0.16], [-0.15, 0.002], *calm[2:]]
    assert abs(locate(disturbed).value - locate(calm).value) < 0.002
    assert locate(disturbed).error < 0.02


def test_launches_are_needed() -> None:
    with pytest.raises(ValueError, match="one launch"):
        locate([[0.1, 0.2]])


def test_blocks_are_paired_in_their_order() -> None:
    found = pair_ratios([1, 2, 4], [1.1, 2.2, 2.0])
    assert found == pytest.approx([math.log(1.1), math.log(1.1), -math.log(2)])
    with pytest.raises(ValueError, match="zip"):
        pair_ratios([1, 2], [1])
    with pytest.raises(ValueError, match="no blocks"):
        pair_ratios([], [])


def test_a_stored_baseline_of_one_launch_widens_the_interval() -> None:
    own = [[0.01], [0.0], [-0.01], [0.005], [-0.005]]
    one, many = locate_difference([[0.0]], own), locate_difference([[0.0], [0.01], [-0.01]], own)
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
    look = judge_look(Location(value, error, 6), LIMIT, 1.0)
    assert look.verdict is verdict
    assert (look.more_launches is not None) == (verdict is Verdict.INCONCLUSIVE)


def test_the_launches_that_would_decide_are_not_helped_by_a_stored_baselines_error() -> None:
    """Against a slow loop; a stored error that alone is too large leaves none."""

    def look(launches: int, stored_error: float) -> Look:
        own = Location(0.0, 0.1 / math.sqrt(launches), launches - 1)
        stored = Location(0.0, stored_error, 4)
        error = math.hypot(own.error, stored.error)
        return judge_look(Location(0.0, error, min(launches - 1, 4), (own, stored)), 0.05, 1.0)

    needed = next(n for n in range(5, 10_000) if look(n, 0.01).verdict is Verdict.PASS)
    for launches in (5, 18, needed - 1):
        assert look(launches, 0.01).more_launches == needed - launches
    for launches in (5, 500):
        assert look(launches, 0.05).verdict is Verdict.INCONCLUSIVE
        assert look(launches, 0.05).more_launches is None


def test_a_stored_baseline_that_varies_too_much_is_named() -> None:
    random = np.random.default_rng(3)

    def side(spread: float) -> Side:
        return Side([[10 * math.exp(random.normal(0, spread))]])

    stored = [side(0.05) for _ in range(5)]
    launches = [Launch(side(0.01)) for _ in range(18)]
    (found,) = judge_launches(launches, GateLimits(latency=0.05), 1.0, stored)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_launches is None
    assert "no budget will decide: bench the baseline with more launches" in found.reason


def test_a_limit_of_nothing_passes_what_is_equal() -> None:
    assert judge_look(Location(0.0, 0.0, 4), 0.0, 1.0).verdict is Verdict.PASS
    assert judge_look(Location(0.001, 0.0, 4), 0.0, 1.0).verdict is Verdict.REGRESSION


def test_the_detectable_effect_is_found_in_four_cases_of_five() -> None:
    random = np.random.default_rng(5)
    error, launches = 0.01, 10
    effect = judge_look(
        Location(0.0, error / math.sqrt(launches), launches - 1), LIMIT, 1.0
    ).minimal_detectable_effect
    found = 0
    for _ in range(600):
        logs = random.normal(math.log1p(effect), error, (launches, 1)).tolist()
        found += judge_look(locate(logs), LIMIT, 1.0).verdict is Verdict.REGRESSION
    assert 0.72 <= found / 600 <= 0.92
