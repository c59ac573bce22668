"""A budget is read strictly and picks as a slow loop does; what it refuses, it explains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy.core.errors import ConfigError
from segdeploy.report.advice import judge_worth
from segdeploy.report.budget import Budget, choose, find_misses
from segdeploy.report.worth import Measured


def one(name: str, ms: float | None, iou: float | None, mib: float = 4.0, **more: Any) -> Measured:
    known: dict[str, Any] = {"failures": (), "reference": "r", "reference_iou": 0.600} | more
    return Measured(name=name, target=name, latency_ms=ms, mean_iou=iou, size_mib=mib, **known)


FP32 = one("onnx-fp32", 17.0, 0.600, 12.4, memory_mib=200.0, bench_run="r")
INT8 = one("onnx-int8", 9.8, 0.594, 3.3, memory_mib=150.0, bench_run="r")
BF16 = one("openvino-bf16", 12.0, 0.599, 6.2, memory_mib=250.0, bench_run="r")


def test_units_are_read() -> None:
    assert Budget.parse(" latency = 8ms, miou=-0.5 ,size=5MiB,memory=0.5GiB") == Budget(
        latency_ms=8, miou=-0.5, size_mib=5, memory_mib=512
    )
    assert Budget.parse("latency=800us").latency_ms == pytest.approx(0.8)
    assert Budget.parse("latency=1.5s").latency_ms == 1500
    assert Budget.parse("size=1MB").size_mib == pytest.approx(1e6 / 2**20)
    assert Budget.parse("size=512 KiB").size_mib == 0.5
    assert Budget.parse("miou=0.62").miou == 0.62
    assert Budget.parse("miou=-0").miou == 0


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "latency", "latency=", "latency=8", "latency=-8ms", "latency=0ms", "latency=8min",
        "latency=8ms,", "latency=8ms,latency=9ms", "latency<8ms", "speed=8ms", "Latency=8ms",
        "latency=1e3ms", "latency=nanms", "latency=٨ms", "miou=62", "miou=-0.5%", "miou=nan",
        "miou=-101", "miou=+0.5", "size=5", "size=5ms", "size=infMiB", "memory=200 m",
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2
    assert "latency=8ms" in caught.value.hint


def pick(text: str, *artifacts: Measured) -> str | None:
    return choose([artifacts], Budget.parse(text)).name


def test_the_fastest_that_meets_everything_is_picked() -> None:
    everyone = (FP32, INT8, BF16)
    assert pick("latency=20ms", *everyone) == "onnx-int8"
    assert pick("miou=-0.5", *everyone) == "openvino-bf16"
    assert pick("miou=-0.5,memory=200MiB", *everyone) == "onnx-fp32"
    assert pick("miou=0.594", *everyone) == "onnx-int8"
    assert pick("size=5MiB,miou=-0.5", *everyone) is None
    found = choose([everyone], Budget.parse("latency=20ms"))
    assert found.reason == ("onnx-int8 is the fastest that meets it: 9.8 ms, mIoU 0.5940, 3.3 MiB.")


def test_each_miss_says_by_how_much() -> None:
    found = choose([[FP32, INT8]], Budget.parse("latency=8ms,miou=-0.5,size=5MiB,memory=100MiB"))
    assert not found
    assert [miss.reason for miss in found.misses["onnx-fp32"]] == [
        "latency: 17 ms, 9 ms over 8 ms",
        "size: 12.4 MiB, 7.4 MiB over 5 MiB",
        "memory: 200 MiB, 100 MiB over 100 MiB",
    ]
    by = {miss.limit: miss.by for miss in found.misses["onnx-int8"]}
    assert by == pytest.approx({"latency": 1.8, "memory": 50.0, "miou": 0.1})
    assert found.misses["onnx-int8"][-1].reason == "miou: -0.60 points to fp32, 0.1 below -0.5"


def test_a_drop_of_exactly_the_limit_is_allowed() -> None:
    assert pick("miou=-0.6", INT8) == "onnx-int8"  # 100 * (0.594 - 0.6) is not quite -0.6.
    assert pick("miou=-0", replace(INT8, mean_iou=0.6)) == "onnx-int8"


def test_what_was_not_measured_does_not_meet_a_limit() -> None:
    blind = one("blind", 5.0, None)
    said = {
        text: find_misses(artifact, [artifact], Budget.parse(text))[0].reason
        for text, artifact in {
            "miou=-1": blind, "miou=0.1": blind, "memory=1GiB": blind,
            "latency=1s": replace(blind, latency_ms=None),
            "size=5MiB": replace(blind, latency_ms=float("nan")),
        }.items()
    }  # fmt: skip
    assert said == {
        "miou=-1": "miou: not evaluated",
        "miou=0.1": "miou: not evaluated",
        "memory=1GiB": "memory: not measured",
        "latency=1s": "latency: not measured",
        "size=5MiB": "latency: not measured",  # Nobody knows whether it is the fastest.
    }


def test_what_failed_or_was_never_verified_is_not_picked() -> None:
    failed = replace(INT8, failures=("hard_flip_rate",))
    unknown = replace(INT8, name="unknown", latency_ms=1.0, failures=None)
    found = choose([[FP32, failed, unknown]], Budget.parse("latency=1s"))
    assert found.name == "onnx-fp32"
    assert found.misses["onnx-int8"][0].reason == "failed verification (hard_flip_rate)"
    assert found.misses["unknown"][0].reason == "never verified"


def test_points_are_to_the_fp32_model_of_the_same_weights_and_images() -> None:
    alone = replace(INT8, reference_iou=None)
    fp32 = replace(FP32, reference_iou=None)
    assert pick("miou=-5", alone) is None  # It is no reference of its own.
    assert pick("miou=-1", alone, fp32) == "onnx-int8"
    assert pick("miou=-0.5", alone, fp32) == "onnx-fp32"
    for stranger in (
        replace(fp32, reference="other"), replace(fp32, scored_on=("test",)),
        replace(fp32, failures=None), replace(fp32, mean_iou=None),
    ):  # fmt: skip
        misses = find_misses(alone, [alone, stranger], Budget.parse("miou=-5"))
        assert "no fp32 model" in misses[0].reason


def test_two_groups_are_not_ranked() -> None:
    budget = Budget.parse("size=5MiB")
    found = choose([[FP32, INT8], [one("elsewhere", 1.0, 0.6)]], budget)
    assert not found
    assert not found.is_decidable
    assert set(found.fitting) == {"onnx-int8", "elsewhere"}
    assert "different conditions" in found.reason
    # A group that does not meet the budget disturbs nobody.
    assert choose([[FP32], [INT8]], budget).name == "onnx-int8"


def test_what_another_one_dominates_is_not_picked() -> None:
    fast = one("fast", 10.0, 0.60, 5.0, memory_mib=200.0, bench_run="r")
    better = one("better", 10.1, 0.63, 2.0, memory_mib=100.0, bench_run="r")
    found = choose([[fast, better]], Budget.parse("latency=20ms"))
    assert found.name == "better"
    assert found.fitting == ("fast", "better")
    assert found.reason == (
        "better is the best of the fastest that meet it, which are equal within noise: 10.1 ms, "
        "mIoU 0.6300, 2.0 MiB."
    )
    # One that does not meet the budget does not count, however good it is.
    assert pick("latency=10.05ms", fast, better) == "fast"


def test_of_those_as_fast_within_noise_quality_counts_then_size() -> None:
    told: dict[str, Any] = {"bench_run": "r"}
    fast = one("fast", 10.0, 0.60, 2.0, memory_mib=100.0, **told)
    good = one("good", 10.1, 0.63, 9.0, memory_mib=100.0, **told)
    small = one("small", 10.1, 0.60, 1.0, memory_mib=300.0, **told)
    slow = one("slow", 11.0, 0.70, 1.0, memory_mib=50.0, **told)
    for order in ((fast, good, small, slow), (slow, small, good, fast)):
        assert pick("latency=20ms", *order) == "good"
    assert pick("size=5MiB", fast, good, small) == "small"
    assert pick("memory=200MiB,miou=-1", fast, slow) == "fast"
    noisy = replace(slow, latency_interval=(5.0, 20.0))  # That nothing is shown is no equality.
    assert pick("latency=20ms", replace(fast, latency_interval=(9.9, 10.1)), noisy) == "fast"


_maybe = st.none() | st.sampled_from([1.0, 2.0, 3.0, 5.0])
_artifacts = st.builds(
    one, st.just("x"), _maybe, st.none() | st.sampled_from([0.58, 0.59, 0.595, 0.6]),
    st.sampled_from([1.0, 2.0, 3.0]), memory_mib=_maybe,
    failures=st.sampled_from([(), (), None, ("finite",)]),
)  # fmt: skip


@given(
    st.lists(_artifacts, max_size=8), st.sampled_from([2, 3]), st.sampled_from([-0.7, -1.2, 0.592]),
    st.sampled_from([2, 3]),
)  # fmt: skip
def test_the_pick_is_that_of_a_slow_loop(
    found: list[Measured], ms: int, miou: float, mib: int
) -> None:
    named = [replace(artifact, name=f"a{i}") for i, artifact in enumerate(found)]
    text = f"latency={ms}ms,miou={miou},size={mib}MiB,memory={mib}MiB"
    fitting: list[Measured] = []
    for artifact in named:
        iou, memory, latency = artifact.mean_iou, artifact.memory_mib, artifact.latency_ms
        if iou is None or memory is None or latency is None or artifact.failures != ():
            continue
        least = miou if miou > 0 else 0.6 + miou / 100
        fits = latency <= ms and iou >= least and artifact.size_mib <= mib and memory <= mib
        fitting += [artifact] if fits else []
    choice = choose([named], Budget.parse(text))
    # The fastest, then the best, then the smallest is dominated by nobody.
    best = min(fitting, default=None, key=lambda a: (a.latency_ms, -(a.mean_iou or 0), a.size_mib))
    assert (choice.name is None) == (best is None)
    if best is not None:
        picked = next(artifact for artifact in fitting if artifact.name == choice.name)
        figures = [(a.latency_ms, a.mean_iou, a.size_mib) for a in (picked, best)]
        assert figures[0] == figures[1]
    assert set(choice.misses) | set(choice.fitting) == {artifact.name for artifact in named}


_near = st.builds(
    one, st.just("x"), st.sampled_from([9.7, 9.8, 9.9, 10.0, 10.1, 10.15, 10.3, 12.0]),
    st.sampled_from([0.5993, 0.6, 0.6008, 0.62]), st.sampled_from([1.0, 1.005, 2.0]),
    memory_mib=st.none() | st.sampled_from([100.0, 103.0, 150.0]), bench_run=st.just("r"),
    latency_interval=st.none() | st.sampled_from([(9.5, 10.5), (9.9, 10.0), (11.9, 12.1)]),
)  # fmt: skip


@given(st.lists(_near, min_size=1, max_size=7), st.sampled_from(["10.2ms", "20ms"]))
def test_the_pick_is_never_one_that_the_report_calls_not_worth_it(
    found: list[Measured], ms: str
) -> None:
    named = [replace(artifact, name=f"a{i}") for i, artifact in enumerate(found)]
    choice = choose([named], Budget.parse(f"latency={ms}"))
    fitting = [artifact for artifact in named if artifact.name in choice.fitting]
    assert bool(choice) == bool(fitting)
    for everyone in (fitting, named):
        for worth in judge_worth(everyone):
            if worth.name == choice.name:
                assert not set(worth.dominated_by) & set(choice.fitting)
