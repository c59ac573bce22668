"""Who dominates whom, against a slow definition; and the sentences that people read."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from segdeploy.cli.app import run_app
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.folder import save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.report.advice import judge_worth
from segdeploy.report.collect import collect_run
from segdeploy.report.comparison import find_worth
from segdeploy.report.cost import latency_interval
from segdeploy.report.scatter import Dot, find_front, scatter_plot
from segdeploy.report.worth import (
    Measured,
    Standing,
    compare,
    dominates,
    median_interval,
)


def one(name: str, ms: float | None, iou: float | None, mib: float, **more: Any) -> Measured:
    interval = None if ms is None else (0.99 * ms, 1.01 * ms)
    return Measured(
        name=name, target=name, latency_ms=ms, latency_interval=interval, mean_iou=iou,
        size_mib=mib, bench_run="r1", conditions=("1x520x520", "2 threads"),
        **({"failures": ()} | more),
    )  # fmt: skip


FP32 = one("onnx-fp32", 17.0, 0.600, 12.4)
BETWEEN = {"Add": 1, "HardSwish": 9, "Resize": 4}
INT8 = one("onnx-int8", 20.06, 0.596, 3.3, borders=14, float_activations=BETWEEN)
FP16 = one("onnx-fp16", 119.0, 0.600, 6.3)
BEST = one("openvino-int8", 9.8, 0.5965, 3.3)
RUN = [FP32, FP16, INT8, BEST]


def test_each_artifact_gets_the_sentence_that_its_numbers_deserve() -> None:
    found = {w.name: w for w in judge_worth(RUN)}
    int8 = found["onnx-int8"]
    assert (int8.standing, int8.dominated_by) == (Standing.DOMINATED, ("openvino-int8",))
    assert int8.advice == (
        "Not worth it here: openvino-int8: 51 % faster at equal quality; it is 18 % slower than "
        "onnx-fp32 here: 14 Q/DQ borders, 9 unfused HardSwish, 1 Add in float, 4 Resize in float."
    )
    assert found["onnx-fp16"].advice == (
        "For GPUs and NPUs: on this CPU it is 7.0x slower than onnx-fp32."
    )
    assert found["onnx-fp32"].standing is Standing.FRONT
    assert found["onnx-fp32"].advice == (
        "Use it where every point of quality counts: 17 ms, 73 % slower than openvino-int8, "
        "mIoU 0.6000, 12.4 MiB."
    )
    assert found["openvino-int8"].advice.startswith(
        "Use it where speed and the size of the file count: 9.8 ms, 42 % faster"
    )


def test_a_better_quality_or_a_smaller_file_keeps_an_artifact_on_the_front() -> None:
    slow = one("onnx-int8", 30.0, 0.600, 3.0)
    assert judge_worth([FP32, slow])[1].standing is Standing.FRONT
    assert judge_worth([FP32, replace(slow, size_mib=12.4)])[1].standing is Standing.DOMINATED


def test_latencies_within_noise_are_equal() -> None:
    near = replace(FP32, name="b", latency_ms=16.8, latency_interval=(16.75, 16.85))
    assert compare(near, FP32)["latency"] == 0  # 1.2 % in one run
    wide = replace(FP32, name="b", latency_ms=12.0, latency_interval=(10.0, 18.0))
    assert compare(wide, FP32)["latency"] == 0  # The intervals overlap.
    other = replace(FP32, name="b", latency_ms=15.9, latency_interval=(15.8, 16.0))
    assert compare(other, FP32)["latency"] == 1
    assert compare(replace(other, bench_run="r2"), FP32)["latency"] == 0
    assert compare(replace(other, bench_run=None), replace(FP32, bench_run=None))["latency"] == 0


def test_flips_stand_in_for_a_missing_miou_and_unknown_quality_decides_nothing() -> None:
    blind = replace(INT8, mean_iou=None, flip_rate=0.01)
    fast = replace(BEST, mean_iou=None, flip_rate=0.004)
    assert dominates(fast, blind)
    assert not dominates(replace(fast, flip_rate=0.02), blind)
    assert not dominates(replace(fast, flip_rate=None), blind)
    assert "0.60 % fewer flips" in judge_worth([blind, fast])[0].advice


def test_what_failed_or_was_measured_elsewhere_dominates_nobody() -> None:
    failed = replace(BEST, failures=("hard_flip_rate",))
    unknown = replace(BEST, name="unknown", failures=None)
    elsewhere = replace(BEST, conditions=("1x224x224", "2 threads"))
    unmeasured = replace(BEST, name="coreml-fp16", target="coreml-fp16", latency_ms=None)
    found = judge_worth([INT8, failed, unknown, elsewhere, unmeasured])
    assert [w.standing for w in found] == [
        Standing.FRONT, Standing.FAILED, Standing.UNVERIFIED, Standing.FRONT, Standing.UNMEASURED,
    ]  # fmt: skip
    assert found[1].advice == "Not to be used: it failed verification (hard_flip_rate)."
    assert found[2].advice == "Not to be used yet: it was never verified."
    assert found[4].advice == "For Apple devices: not measured here."


def test_scores_on_other_images_and_flips_against_another_model_are_not_compared() -> None:
    worse = replace(INT8, mean_iou=0.1, flip_rate=0.01)
    assert dominates(replace(BEST, flip_rate=0.001), worse)
    assert dominates(replace(BEST, flip_rate=0.001, scored_on=("camvid/test",)), worse)  # By flips.
    elsewhere = replace(BEST, flip_rate=0.001, scored_on=("camvid/test",), reference="other")
    assert not dominates(elsewhere, worse)


def test_equal_speed_does_not_keep_the_worse_one_on_the_front() -> None:
    small = replace(FP32, name="z", size_mib=3.0)
    near = replace(small, latency_ms=17.05, latency_interval=(16.9, 17.2))  # Equal within noise.
    for better in (small, near):
        assert judge_worth([FP32, better])[0].dominated_by == ("z",)


def test_noise_does_not_make_equal_what_looks_slower() -> None:
    noisy = replace(
        FP32, name="noisy", latency_ms=30.0, latency_interval=(10.0, 60.0), size_mib=1.0
    )
    assert compare(noisy, FP32)["latency"] == 0
    assert not dominates(noisy, FP32)
    assert dominates(replace(noisy, latency_ms=12.0), FP32)
    small = replace(INT8, latency_ms=30.0, latency_interval=(10.0, 60.0), borders=None)
    assert "where the size of the file counts" in judge_worth([small, FP32])[0].advice


def test_the_sentence_does_not_call_slower_what_is_equal_within_noise() -> None:
    small = replace(FP32, name="small", size_mib=3.0, mean_iou=0.5)
    near = replace(small, latency_ms=17.2, latency_interval=(17.1, 17.3))
    for one_of_two in (near, replace(near, latency_ms=16.8, latency_interval=(16.7, 16.9))):
        for worth, other in zip(
            judge_worth([one_of_two, FP32]), ("onnx-fp32", "small"), strict=True
        ):
            assert f"ms, within noise as fast as {other}, mIoU" in worth.advice
            assert "slower" not in worth.advice
            assert "faster" not in worth.advice
    noisy = replace(small, latency_ms=30.0, latency_interval=(10.0, 60.0))
    assert "30 ms, too noisy to tell from onnx-fp32, mIoU" in judge_worth([noisy, FP32])[0].advice


def test_a_slow_precision_is_held_against_fp32_of_the_same_model_and_contract() -> None:
    other_model = replace(FP32, name="other", latency_ms=5.0, reference="other", mean_iou=0.1)
    other_contract = replace(FP32, name="image", latency_ms=16.0, contract="image to labels")
    slow = judge_worth([INT8, other_model, other_contract, FP32])[0].advice
    assert "18 % slower than onnx-fp32 here: 14 Q/DQ borders" in slow


_values = st.sampled_from([1.0, 1.01, 1.5, 2.0, 3.0])
_artifacts = st.builds(
    Measured,
    name=st.just("x"),
    target=st.sampled_from(["onnx-fp32", "onnx-int8", "ncnn-fp16"]),
    latency_ms=st.none() | _values,
    mean_iou=st.none() | st.sampled_from([0.5, 0.5005, 0.6]),
    flip_rate=st.none() | st.sampled_from([0.0, 0.0005, 0.01]),
    size_mib=_values,
    memory_mib=st.none() | _values,
    bench_run=st.sampled_from(["a", "b"]),
    failures=st.sampled_from([(), None, ("finite",)]),
)


def _leads_to(above: dict[str, set[str]], start: str, goal: str, seen: frozenset[str]) -> bool:
    """Whether a chain of who dominates whom goes from one artifact to another, by trying all."""
    return any(
        step == goal or _leads_to(above, step, goal, seen | {step}) for step in above[start] - seen
    )


@given(st.lists(_artifacts, min_size=1, max_size=6))
def test_domination_is_no_worse_anywhere_and_better_somewhere(found: list[Measured]) -> None:
    named = [replace(artifact, name=f"a{i}") for i, artifact in enumerate(found)]
    worth = {w.name: w for w in judge_worth(named)}
    assert list(worth) == [a.name for a in named]
    above: dict[str, set[str]] = {a.name: set() for a in named}
    for a in named:
        assert not dominates(a, a)
        assert worth[a.name].advice.endswith(".")
        for b in named:
            assert not (dominates(a, b) and dominates(b, a))
            signs = compare(a, b)
            assert {k: None if s is None else -s for k, s in compare(b, a).items()} == signs
            is_usable = a.failures == () and b.failures == ()
            if (
                is_usable and signs["latency"] is not None and signs["quality"] is not None
                and all(s in (0, 1, None) for s in signs.values()) and 1 in signs.values()
            ):  # fmt: skip
                above[b.name].add(a.name)
    for name, better in above.items():
        expected = {a for a in better if not _leads_to(above, a, name, frozenset())}
        assert set(worth[name].dominated_by) == expected
    usable = [a for a in named if a.failures == () and a.latency_ms is not None]
    assert not usable or any(worth[a.name].standing is Standing.FRONT for a in usable)


_FAR = st.sampled_from([1.0, 2.0, 4.0, 8.0])  # Farther apart than any noise.
_POINTS = st.tuples(
    _FAR | st.just(math.nan) | st.none(), st.sampled_from([0.2, 0.4, 0.6, math.nan]) | st.none(),
    _FAR, _FAR | st.just(math.nan) | st.none(),
)  # fmt: skip


@given(st.lists(_POINTS, min_size=1, max_size=40))
def test_the_front_is_that_of_a_slow_loop(points: list[tuple[Any, Any, float, Any]]) -> None:
    named = [
        one(f"a{i}", ms, iou, mib, memory_mib=memory)
        for i, (ms, iou, mib, memory) in enumerate(points)
    ]
    for own, point in zip(judge_worth(named), points, strict=True):
        beaten = False
        for other in points:
            known = [
                (x, y) if axis != 1 else (-x, -y)
                for axis, (x, y) in enumerate(zip(other, point, strict=True))
                if not (x is None or y is None or math.isnan(x) or math.isnan(y))
            ]
            has_both = all(
                v is not None and not math.isnan(v) for p in (other, point) for v in p[:2]
            )
            beaten |= has_both and all(x <= y for x, y in known) and any(x < y for x, y in known)
        is_measured = point[0] is not None and not math.isnan(point[0])
        expected = Standing.DOMINATED if beaten else Standing.FRONT
        assert own.standing is (expected if is_measured else Standing.UNMEASURED)


@given(st.lists(st.tuples(_FAR, st.sampled_from([0.1, 0.2, 0.3])), max_size=20), st.booleans())
def test_the_line_goes_through_the_front(points: list[tuple[float, float]], is_high: bool) -> None:
    dots = [Dot(str(i), x, y, 1.0) for i, (x, y) in enumerate(points)]
    sign = 1 if is_high else -1
    expected = {
        (x, y)
        for x, y in points
        if not any(
            u <= x and sign * v >= sign * y and (u, v) != (x, y) for u, v in points
        )
    }  # fmt: skip
    found = [(dot.x, dot.y) for dot in find_front(dots, is_high_better=is_high)]
    assert (set(found), len(found)) == (expected, len(expected))
    assert found == sorted(found)


def test_a_ring_within_noise_leaves_somebody_on_the_front() -> None:
    ring = [
        one("a", 103.0, 0.5000, 10.00),
        one("b", 101.5, 0.5009, 10.11),
        one("c", 100.0, 0.4998, 10.05),
    ]  # fmt: skip
    assert any(not worth.dominated_by for worth in judge_worth(ring))


@pytest.mark.parametrize("count", [6, 30, 100, 400])
def test_median_interval_covers_as_often_as_the_binomial_says(count: int) -> None:
    ordered = [float(i) for i in range(count)]
    found = median_interval(list(np.random.default_rng(0).permutation(ordered)))
    assert found is not None
    low, high = found
    assert low == count - 1 - high
    assert 1 - 2 * binom.cdf(low, count, 0.5) >= 0.93  # The median lies between these samples.
    assert median_interval(ordered[:5]) is None


def test_the_interval_of_a_latency_covers_its_blocks_and_launches() -> None:
    rng = np.random.default_rng(0)
    calm = [float(ms) for ms in rng.normal(10.0, 0.1, 1000)]
    alone = latency_interval(calm)
    assert alone == median_interval(calm)
    assert alone is not None
    # Blocks of 100 calls that stand 5 % apart: the calls of one block are alike.
    levels = np.repeat([0.95, 1.05, 1.0, 0.95, 1.05, 1.0, 0.95, 1.05, 1.0, 1.0], 100)
    apart = [float(ms) for ms in np.asarray(calm) * levels]
    low, high = latency_interval(apart, [100] * 10) or (0.0, 0.0)
    assert low < 9.6
    assert high > 10.4
    narrow = median_interval(apart) or (0.0, 0.0)
    assert high - low > 3 * (narrow[1] - narrow[0])
    # Three launches: no order statistics of three give 95 %, so it is their range.
    steps = [9.0] * 50 + [10.0] * 50 + [11.0] * 51
    assert latency_interval(steps, [1] * 151, [50, 50, 51]) == (9.0, 11.0)
    assert latency_interval([9.0] * 10 + [11.0] * 90, [], [100]) == (11.0, 11.0)
    for odd in ([100] * 9, [100] * 9 + [99], [0, 1000], [-1, 1001], [{}, 1], "x" * 10):
        assert latency_interval(calm, odd, odd) == alone
    assert latency_interval([], [], []) is None


def test_an_interval_of_the_file_heeds_its_blocks(tmp_path: Path) -> None:
    _folder(tmp_path, "onnx-fp32", 10.0, 0.6, 4.0, {})
    file = tmp_path / "onnx-fp32" / "bench.json"
    plain = json.loads(file.read_text())
    plain["samples_ms"] = [10.0 + (i // 20) for i in range(200)]  # Ten blocks, one slower each.
    plain["environment"]["block_sizes"] = [20] * 10
    file.write_text(json.dumps(plain))
    (row,) = collect_run(tmp_path).rows
    assert row.cost.interval_ms == (11.0, 18.0)
    plain["launches"] = [100, 100]
    del plain["environment"]["block_sizes"]
    file.write_text(json.dumps(plain))
    (row,) = collect_run(tmp_path).rows
    assert row.cost.interval_ms == (12.0, 17.0)


def _folder(run: Path, name: str, ms: float, iou: float, mib: float, options: Any) -> None:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 2, None)
    manifest = Manifest(
        kind="artifact", model="m", task=Task.MULTICLASS, classes=("a", "b"),
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={"model.onnx": ""},
        target=name, options=options, passed=True,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(bytes(int(mib * 2**20)))
        environment = {"bench_run": "r", "threads": 2, "device": "cpu", "cpu": "A"}
        bench = {
            "latency_ms": {"p50": ms}, "samples_ms": [ms + 0.001 * i for i in range(40)],
            "input_shape": [1, 3, 64, 64], "environment": environment,
        }  # fmt: skip
        (folder / "bench.json").write_text(json.dumps(bench))
        (folder / "eval.json").write_text(json.dumps({"mean_iou": iou, "data": "d"}))

    save_folder(run / name, manifest, fill)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    facts = {"policy": "onnx", "borders": 14, "float_activations": {"HardSwish": 9}}
    _folder(tmp_path, "onnx-fp32", 17.0, 0.600, 4.0, {})
    _folder(tmp_path, "onnx-int8", 20.06, 0.596, 4.0, {"int8": facts})
    _folder(tmp_path, "openvino-int8", 9.8, 0.597, 1.0, {"int8": {"float_activations": 3}})
    return tmp_path


def test_the_report_says_it_in_the_page_the_markdown_and_json(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("segdeploy.cli.report")
    monkeypatch.setattr(sys, "argv", ["segdeploy", "report", str(run), "--json"])
    assert run_app() == 0
    document = json.loads(capsys.readouterr().out)
    worth = {w["name"]: w for w in document["worth"]}
    reason = "18 % slower than onnx-fp32 here: 14 Q/DQ borders, 9 unfused HardSwish"
    assert reason in worth["onnx-int8"]["advice"]
    assert worth["onnx-int8"]["standing"] == "dominated"
    assert worth["onnx-int8"]["dominated_by"] == ["openvino-int8", "onnx-fp32"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Worth it?" in page
    assert reason in page
    assert page.count('<circle class="dot') == 2 * 3  # Against mIoU and against size.
    assert page.count("ghost") - page.count(".ghost") == 2
    assert reason in (run / "report.md").read_text(encoding="utf-8").replace("\\", "")


@pytest.mark.parametrize(
    "facts",
    [None, 3, "x", [], {"borders": "many", "float_activations": [1]}, {"borders": True}],
)
def test_odd_facts_of_a_manifest_are_passed_over(tmp_path: Path, facts: Any) -> None:
    _folder(tmp_path, "onnx-fp32", 10.0, 0.6, 4.0, {})
    _folder(tmp_path, "onnx-int8", 20.0, 0.6, 4.0, {"int8": facts})
    found = find_worth(collect_run(tmp_path).rows)
    assert found[1].advice.endswith("it is 2.0x slower than onnx-fp32.")


_NAMES = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(artifact-\d)'


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_names_in_a_scatter_plot_do_not_cover_each_other(spread: float) -> None:
    dots = [Dot(f"artifact-{i}", 10 + spread * i, 0.5, 3.0) for i in range(8)]
    plot = scatter_plot("t", "a", dots)
    boxes = []
    for x, y, anchor, name in re.findall(_NAMES, plot):
        start = float(x) if anchor == "start" else float(x) - 5.5 * len(name)
        boxes.append((start, start + 5.5 * len(name), float(y)))
    assert len(boxes) == 8
    for (left, right, y), (start, end, other) in combinations(boxes, 2):
        assert right <= start or end <= left or abs(y - other) > 10
    assert plot.count('<line class="grid" x1="') > 4  # A line leads from a dot to a far name.
