"""Who dominates whom, against a slow definition; and the sentences that people read."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
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
from segdeploy.report.plots import Dot, scatter_plot
from segdeploy.report.worth import (
    Measured,
    Standing,
    compare,
    dominates,
    latency_of,
    median_interval,
)


def one(name: str, ms: float | None, iou: float | None, mib: float, **more: Any) -> Measured:
    interval = None if ms is None else (0.99 * ms, 1.01 * ms)
    return Measured(
        name=name, target=name, latency_ms=ms, latency_interval=interval, mean_iou=iou,
        size_mib=mib, bench_run="r1", conditions=("1x520x520", "2 threads"), **more,
    )  # fmt: skip


FP32 = one("onnx-fp32", 17.0, 0.600, 12.4)
INT8 = one("onnx-int8", 20.06, 0.596, 3.3, borders=14, float_activations={"HardSwish": 9})
FP16 = one("onnx-fp16", 119.0, 0.600, 6.3)
BEST = one("openvino-int8", 9.8, 0.5965, 3.3)
RUN = [FP32, FP16, INT8, BEST]


def test_each_artifact_gets_the_sentence_that_its_numbers_deserve() -> None:
    found = {w.name: w for w in judge_worth(RUN)}
    int8 = found["onnx-int8"]
    assert (int8.standing, int8.dominated_by) == (Standing.DOMINATED, ("openvino-int8",))
    assert int8.advice == (
        "Not worth it here: openvino-int8: 51 % faster at equal quality; it is 18 % slower than "
        "onnx-fp32 here: 14 Q/DQ borders, 9 unfused HardSwish."
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
    elsewhere = replace(BEST, conditions=("1x224x224", "2 threads"))
    unmeasured = replace(BEST, name="coreml-fp16", target="coreml-fp16", latency_ms=None)
    found = judge_worth([INT8, failed, elsewhere, unmeasured])
    assert [w.standing for w in found] == [
        Standing.FRONT, Standing.FAILED, Standing.FRONT, Standing.UNMEASURED,
    ]  # fmt: skip
    assert found[1].advice == "Not to be used: it failed verification (hard_flip_rate)."
    assert found[3].advice == "For Apple devices: not measured here."


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
    failures=st.sampled_from([(), ("finite",)]),
)


@given(st.lists(_artifacts, min_size=1, max_size=6))
def test_domination_is_no_worse_anywhere_and_better_somewhere(found: list[Measured]) -> None:
    named = [replace(artifact, name=f"a{i}") for i, artifact in enumerate(found)]
    worth = {w.name: w for w in judge_worth(named)}
    assert list(worth) == [a.name for a in named]
    for a in named:
        assert not dominates(a, a)
        assert worth[a.name].advice.endswith(".")
        for b in named:
            assert not (dominates(a, b) and dominates(b, a))
            signs = compare(a, b)
            assert {k: None if s is None else -s for k, s in compare(b, a).items()} == signs
            is_usable = not a.failures and not b.failures
            expected = (
                is_usable and signs["latency"] is not None and signs["quality"] is not None
                and all(s in (0, 1, None) for s in signs.values()) and 1 in signs.values()
            )  # fmt: skip
            is_faster = (latency_of(a), a.name) < (latency_of(b), b.name)
            assert (a.name in worth[b.name].dominated_by) == (expected and is_faster)


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


def _folder(run: Path, name: str, ms: float, iou: float, mib: float, options: Any) -> None:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 2, None)
    manifest = Manifest(
        kind="artifact", model="m", task=Task.MULTICLASS, classes=("a", "b"),
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={"model.onnx": ""},
        target=name, options=options,
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
    assert page.count('<circle class="dot') == 3
    assert page.count("ghost") - page.count(".ghost") == 1
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


_NAMES = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="\w+">artifact'


def test_names_in_a_scatter_plot_do_not_cover_each_other() -> None:
    dots = [Dot(f"artifact-{i}", 10 + 0.1 * i, 0.5, 3.0) for i in range(8)]
    texts = [(float(x), float(y)) for x, y in re.findall(_NAMES, scatter_plot("t", "a", dots))]
    heights = sorted(y for _, y in texts)
    assert len(heights) == 8
    assert all(b - a > 5 for a, b in pairwise(heights))
