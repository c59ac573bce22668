"""What `tune` keeps: properties of the decision and of the search, with figures made by a clock
that counts instead of measuring."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segdeploy.core.errors import ArtifactError, BuildError, RunLockedError, SegDeployError
from segdeploy.graph.policy import CHOICES, Policy, shipped_policy
from segdeploy.workflows.tune_decision import (
    LEAST_GAIN,
    LEVEL,
    Accuracy,
    Ratio,
    decide,
    ratio_of_blocks,
)
from segdeploy.workflows.tune_search import BestFailedError, Instruments, search

_TIMES = st.floats(0.1, 1e3)
_RATES = st.floats(0, 1)
_ACCURACY = st.builds(Accuracy, st.booleans(), _RATES, _RATES)
GOOD, BAD = Accuracy(True, 0.01, 0.001), Accuracy(False, 0.2, 0.1)


@st.composite
def _ratios(draw: st.DrawFn) -> Ratio:
    low, value, high = sorted(draw(st.lists(st.floats(0.1, 3), min_size=3, max_size=3)))
    return Ratio(value, low, high)


@given(best=_ACCURACY, candidate=_ACCURACY, ratio=_ratios())
def test_what_breaks_a_limit_is_never_kept_and_what_mends_one_always(
    best: Accuracy, candidate: Accuracy, ratio: Ratio
) -> None:
    kept = decide(best, candidate, ratio).kept
    if not candidate.passed:
        assert not kept
    elif not best.passed:
        assert kept
    else:
        assert kept == (ratio.high < 1 and ratio.value <= 1 - LEAST_GAIN)


@given(ratio=_ratios(), factor=st.floats(0.1, 1))
def test_a_faster_candidate_is_not_dropped_for_being_faster(ratio: Ratio, factor: float) -> None:
    faster = Ratio(ratio.value * factor, ratio.low * factor, ratio.high * factor)
    assert decide(GOOD, GOOD, faster).kept or not decide(GOOD, GOOD, ratio).kept


@given(ratio=_ratios())
def test_a_change_is_never_kept_together_with_its_reverse(ratio: Ratio) -> None:
    back = Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    assert not (decide(GOOD, GOOD, ratio).kept and decide(GOOD, GOOD, back).kept)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 10, 17, 40])
def test_the_interval_has_the_ranks_of_the_sign_test(count: int) -> None:
    ratios = np.random.default_rng(count).lognormal(size=count)
    found = ratio_of_blocks([1.0] * count, ratios.tolist())
    assert found.value == pytest.approx(np.median(ratios))
    ordered = sorted(ratios)
    ranks = [r for r in range((count + 1) // 2) if 2 * stats.binom.cdf(r, count, 0.5) <= 1 - LEVEL]
    if not ranks:
        assert (found.low, found.high) == (0.0, math.inf)
    else:
        assert (found.low, found.high) == (ordered[ranks[-1]], ordered[-1 - ranks[-1]])


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        drift = rng.lognormal(0, 0.5, 10)  # Hits both alike.
        best = drift * rng.lognormal(0, 0.1, 10)
        candidate = 0.9 * drift * rng.lognormal(0, 0.1, 10)
        found = ratio_of_blocks(best.tolist(), candidate.tolist())
        hits += found.low <= 0.9 <= found.high
    assert hits >= 950


@given(best=st.lists(_TIMES, min_size=6, max_size=12), scale=st.floats(0.01, 100))
def test_the_unit_of_time_does_not_matter(best: list[float], scale: float) -> None:
    other = best[::-1]
    first = ratio_of_blocks(best, other)
    second = ratio_of_blocks([scale * b for b in best], [scale * c for c in other])
    assert second.value == pytest.approx(first.value)


def test_one_disturbed_block_does_not_hide_a_gain() -> None:
    found = ratio_of_blocks([10.0] * 10, [8.0] * 9 + [400.0])
    assert decide(GOOD, GOOD, found).kept


def test_blocks_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        ratio_of_blocks([], [])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio_of_blocks([1.0, 2.0], [1.0])


GROUPS = ["gate", "resize", "classifier"]
_COSTS = st.fixed_dictionaries(
    {g: st.fixed_dictionaries({c: st.floats(1, 10) for c in CHOICES[g]}) for g in GROUPS}
)


class _World:
    """Costs that add up, measured without noise; some choices break a limit."""

    def __init__(
        self, costs: dict[str, dict[str, float]], forbidden: set[tuple[str, str]] | None = None
    ) -> None:
        self.costs = costs
        self.forbidden = forbidden or set()
        self.compared: list[tuple[Hashable, Hashable, int]] = []

    def time(self, policy: Policy) -> float:
        return sum(self.costs[g][policy.groups[g]] for g in GROUPS)

    def place(self, policy: Policy) -> Hashable:
        return tuple(policy.groups[g] for g in GROUPS)

    def judge(self, policy: Policy) -> Accuracy:
        broken = any((g, policy.groups[g]) in self.forbidden for g in GROUPS)
        return BAD if broken else GOOD

    def compare(self, best: Policy, candidate: Policy, turn: int) -> Ratio:
        self.compared.append((self.place(best), self.place(candidate), turn))
        ratio = self.time(candidate) / self.time(best)
        return Ratio(ratio, ratio, ratio)

    def instruments(self) -> Instruments:
        return Instruments(self.place, self.judge, self.compare)

    def search(self, start: Policy) -> Policy:
        return search(start, GROUPS, self.instruments())[0]


@given(costs=_COSTS)
def test_costs_that_add_up_are_brought_near_their_least(costs: dict[str, dict[str, float]]) -> None:
    world = _World(costs)
    found = world.time(world.search(shipped_policy("default")))
    least = min(
        sum(costs[g][c] for g, c in zip(GROUPS, chosen, strict=True))
        for chosen in product(*(CHOICES[g] for g in GROUPS))
    )
    # Each group may be left where the rest of the gain is below what is worth a change.
    assert found <= least / (1 - LEAST_GAIN) ** (2 * len(GROUPS))


@given(costs=_COSTS, forbidden=st.sets(st.sampled_from([("gate", "int8"), ("resize", "int8")])))
def test_the_result_is_within_the_limits_and_no_slower_than_the_start(
    costs: dict[str, dict[str, float]], forbidden: set[tuple[str, str]]
) -> None:
    world, start = _World(costs, forbidden), shipped_policy("default")
    found = world.search(start)
    assert world.judge(found).passed
    assert world.time(found) <= world.time(start)


@given(costs=_COSTS)
def test_no_placement_is_measured_twice(costs: dict[str, dict[str, float]]) -> None:
    world = _World(costs)
    world.search(shipped_policy("default"))
    candidates = [(candidate, turn) for _, candidate, turn in world.compared]
    assert len(candidates) == len(set(candidates))


def test_a_start_that_breaks_a_limit_is_mended_though_that_costs_time() -> None:
    costs = {g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS}
    costs["resize"]["int8"] = 9.0
    world = _World(costs, {("resize", "float")})
    assert world.search(shipped_policy("default")).groups["resize"] == "int8"


def test_groups_that_pay_only_together_are_found_by_trying_everything() -> None:
    class Together(_World):
        def time(self, policy: Policy) -> float:
            chosen = [policy.groups[g] for g in ("gate", "resize")]
            return {2: 5.0, 1: 12.0, 0: 10.0}[chosen.count("int8")]

    world = Together({g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS})
    found = world.search(shipped_policy("default"))
    assert (found.groups["gate"], found.groups["resize"]) == ("int8", "int8")


def test_a_win_by_chance_is_not_kept_and_what_is_reported_is_the_second_measurement() -> None:
    class Lucky(_World):
        def compare(self, best: Policy, candidate: Policy, turn: int) -> Ratio:
            return Ratio(0.5, 0.4, 0.6) if turn == 0 else Ratio(1.0, 0.9, 1.1)

    world, start = (
        Lucky({g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS}),
        shipped_policy("default"),
    )
    found, trials = search(start, GROUPS, world.instruments())
    assert found == start
    assert {t.ratio and t.ratio.value for t in trials} == {1.0}
    assert not any(t.decision.kept for t in trials)


class _Fragile(_World):
    """`gate = int8` cannot be built, `resize = int8` cannot be timed; the rest is ever faster."""

    def judge(self, policy: Policy) -> Accuracy:
        if policy.groups["gate"] == "int8":
            raise BuildError("no kernel\nand more", hint="x")
        return super().judge(policy)

    def compare(self, best: Policy, candidate: Policy, turn: int) -> Ratio:
        if candidate.groups["resize"] == "int8":
            raise ArtifactError("crashed")
        return super().compare(best, candidate, turn)


def test_a_candidate_that_fails_has_lost_with_its_reason_and_the_search_goes_on() -> None:
    costs = {g: dict.fromkeys(CHOICES[g], 9.0) for g in GROUPS}
    costs["classifier"]["int8"] = 1.0
    start = shipped_policy("default")
    start = replace(start, groups={**start.groups, **dict.fromkeys(GROUPS, "float")})
    found, trials = search(start, GROUPS, _Fragile(costs).instruments())
    assert found.groups == {**start.groups, "classifier": "int8"}
    told = {trial.change: trial.to_dict() for trial in trials[:3]}
    assert list(told) == ["everything int8", "gate = int8", "resize = int8"]
    unknown = {"ratio": None, "interval": None, "kept": False}
    lost = {**unknown, "flip_rate": None, "hard_flip_rate": None, "passed": None}
    assert told["gate = int8"] == {
        "change": "gate = int8", **lost, "reason": "it failed: no kernel"
    }  # fmt: skip
    assert told["resize = int8"] == {
        "change": "resize = int8", **unknown, "flip_rate": GOOD.flip_rate, "passed": True,
        "hard_flip_rate": GOOD.hard_flip_rate, "reason": "it failed: crashed",
    }  # fmt: skip
    assert str(trials[1]) == "gate = int8: not kept, it failed: no kernel"
    assert str(trials[2]) == "resize = int8: 1.00% flips: not kept, it failed: crashed"


def test_a_trial_is_called_everything_int8_only_if_the_whole_graph_is() -> None:
    world = _World({g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS})
    start = shipped_policy("default")
    start = replace(start, groups={**start.groups, **dict.fromkeys(GROUPS, "float")})

    def first(groups: Sequence[str], present: Sequence[str], start: Policy = start) -> str:
        _, trials = search(start, groups, world.instruments(), present=present)
        return trials[0].change

    assert first(GROUPS, GROUPS) == "everything int8"
    assert first(GROUPS[:2], GROUPS) == f"{GROUPS[0]} and {GROUPS[1]} in int8"
    assert start.groups["pooled"] == "weights"
    assert first(GROUPS, [*GROUPS, "pooled"]) == "gate, resize and classifier in int8"
    assert first(GROUPS[:1], GROUPS) == f"{GROUPS[0]} = int8"
    rest = replace(start, groups={**start.groups, GROUPS[2]: "int8"})
    assert first(GROUPS[:2], GROUPS, rest) == "everything int8"


def test_a_group_that_places_nothing_else_is_named() -> None:
    """As a MaxPool behind a float stem: each choice of it gives the graph that is there."""

    class Blind(_World):
        def place(self, policy: Policy) -> tuple[tuple[str, str], ...]:
            return tuple((g, c) for g, c in sorted(policy.groups.items()) if g != "resize")

    world = Blind({g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS})
    lines: list[str] = []
    search(shipped_policy("default"), GROUPS, world.instruments(), lines.append)
    named = [line.partition(":")[0] for line in lines if "no choice changes" in line]
    assert named == ["resize"]


@pytest.mark.parametrize("error", [BestFailedError("gone"), RunLockedError("busy")])
def test_what_is_no_fault_of_the_candidate_ends_the_search(error: SegDeployError) -> None:
    class Ended(_World):
        def compare(self, best: Policy, candidate: Policy, turn: int) -> Ratio:
            raise error

    world = Ended({g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS})
    with pytest.raises(type(error)):
        search(shipped_policy("default"), GROUPS, world.instruments())


def test_a_start_that_fails_ends_the_search() -> None:
    costs = {g: dict.fromkeys(CHOICES[g], 1.0) for g in GROUPS}
    start = shipped_policy("default")
    broken = replace(start, groups={**start.groups, "gate": "int8"})
    with pytest.raises(BuildError):
        search(broken, GROUPS, _Fragile(costs).instruments())
