"""The gate on real artifacts: what breaks, what is refused, what is kept. Nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from time import monotonic, sleep
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.planted_worker import PLANTED, PlantedChild
from segdeploy.bench import pairs
from segdeploy.core.contract import IoContract, OutputKind, TensorSpec
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.core.gate import GateResult, Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.workflows.gate import GatePlan, free_cores, gate

SIZE = (64, 96)
SHORT = GatePlan(budget_s=0.1, threads=1)  # The least number of launches.
Edit = Callable[[onnx.ModelProto], None]
Variant = Callable[..., Path]


@pytest.fixture
def variant(baseline: Artifact, tmp_path: Path, rewrite: Callable[..., Artifact]) -> Variant:
    """A copy of the artifact with another graph, as a faulty export would have written it."""

    def make(name: str, edit: Edit | None = None, **changes: Any) -> Path:
        copytree(baseline.path, tmp_path / name)
        copy = load_artifact(tmp_path / name)
        if edit is not None:
            model = onnx.load(copy.payload)
            edit(model)
            onnx.save(model, copy.payload)
        rewrite(copy, **changes)
        return copy.path

    return make


def _end_with(model: onnx.ModelProto, kind: str, extra: list[onnx.TensorProto]) -> None:
    """Put one node between the graph and its output."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
    model.graph.initializer.extend(extra)
    inputs = ["before", *(each.name for each in extra)]
    attributes = {"axis": 1} if kind == "Gather" else {}
    node = helper.make_node(kind, inputs, [name], **attributes)  # type: ignore[arg-type]
    model.graph.node.append(node)


def swap_classes(model: onnx.ModelProto) -> None:
    order = numpy_helper.from_array(np.array([1, 0, 2, 3, 4]), "order")
    _end_with(model, "Gather", [order])


def answer_nan(model: onnx.ModelProto) -> None:
    zero = numpy_helper.from_array(np.array(np.nan, np.float32), "nan")
    _end_with(model, "Add", [zero])


def shift_all(model: onnx.ModelProto) -> None:
    """A shift common to all classes changes no decision."""
    shift = numpy_helper.from_array(np.array(0.5, np.float32), "shift")
    _end_with(model, "Add", [shift])


def test_a_slower_candidate_is_a_regression(
    baseline: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLANTED, "slow:9")
    result = gate(baseline.path, baseline.path, plan=SHORT, start=PlantedChild)
    assert result.verdict is Verdict.REGRESSION
    assert not result
    assert result.latency is not None
    assert result.latency.ratio is not None
    assert result.latency.ratio > 3
    assert result.parity["passed"]
    launches = result.samples["launches"]
    assert len(launches) == 5
    assert all(
        len(launch[side]["blocks_ms"]) == 2
        for launch in launches
        for side in ("baseline", "candidate")
    )


def test_every_limit_is_measured_and_the_document_is_complete(baseline: Artifact) -> None:
    limits = GateLimits(latency=9, throughput=9, memory=9, size=0, cold_start=9)
    result = gate(baseline.path, baseline.path, plan=SHORT, limits=limits, save=True)
    document = json.loads((baseline.path / "gate.json").read_bytes())
    assert document == json.loads(json.dumps(result.to_dict()))
    assert [metric["name"] for metric in document["metrics"]] == [
        "latency", "throughput", "memory", "cold_start", "size",
    ]  # fmt: skip
    assert all(metric["baseline"] > 0 for metric in document["metrics"])
    assert {"verdict", "ratio", "ratio_ci", "minimal_detectable_effect", "samples"} <= set(document)
    assert document["environment"]["threads"] == 1
    assert result.verdict is Verdict.PASS, result.reason


@pytest.mark.parametrize(
    ("fault", "said"), [("crash", "killed by SIGKILL"), ("hang", "no answer within")]
)
def test_a_candidate_that_crashes_or_hangs_is_broken(
    fault: str, said: str, baseline: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLANTED, fault)
    monkeypatch.setattr(pairs, "GRACE_S", 2.0)
    monkeypatch.setattr(pairs, "_PATIENCE", 2.0)
    result = gate(baseline.path, baseline.path, plan=SHORT, start=PlantedChild)
    assert result.verdict is Verdict.BROKEN
    assert result.verdict.exit_code == 1
    assert said in result.reason


@pytest.mark.parametrize("edit", [swap_classes, answer_nan])
def test_wrong_answers_are_found_before_any_timing(
    edit: Edit, baseline: Artifact, variant: Variant
) -> None:
    wrong = variant("wrong", edit)
    result = gate(baseline.path, wrong, plan=SHORT)
    assert result.verdict is Verdict.BROKEN
    assert result.samples["launches"] == []
    assert result.parity["passed"] is False


def test_a_right_answer_of_another_graph_goes_on_to_the_timing(
    baseline: Artifact, variant: Variant
) -> None:
    shifted = variant("shifted", shift_all)
    result = gate(baseline.path, shifted, plan=SHORT, limits=GateLimits(latency=9))
    assert result.verdict is Verdict.PASS
    assert result.parity["flip_rate"] == 0


def test_one_that_failed_verify_is_broken_unseen(baseline: Artifact, variant: Variant) -> None:
    failed = variant("failed", passed=False)
    result = gate(baseline.path, failed, plan=SHORT)
    assert result.verdict is Verdict.BROKEN
    assert "failed its verification" in result.reason


def test_a_payload_that_does_not_open_is_broken(
    baseline: Artifact, variant: Variant, rewrite: Callable[..., Artifact]
) -> None:
    broken = variant("broken")
    load_artifact(broken).payload.write_bytes(b"no graph")
    rewrite(Artifact(broken, baseline.manifest))
    assert gate(baseline.path, broken, plan=SHORT).verdict is Verdict.BROKEN
    with pytest.raises(ArtifactError):
        gate(broken, baseline.path, plan=SHORT)  # A broken baseline judges nobody.


def test_other_weights_are_judged_by_their_own_checkpoint_or_by_what_verify_said(
    baseline: Artifact, variant: Variant
) -> None:
    link = baseline.manifest.reference
    assert link is not None
    other = type(link)("0" * 64, "nowhere")
    limits = GateLimits(latency=9)
    verified = variant("verified", swap_classes, reference=other)
    result = gate(baseline.path, verified, plan=SHORT, limits=limits)
    assert result.verdict is Verdict.PASS
    assert "verified earlier" in result.parity["note"]
    unknown = variant("unknown", reference=other, passed=None)
    with pytest.raises(ConfigError, match="never verified"):
        gate(baseline.path, unknown, plan=SHORT, limits=limits)
    plan = GatePlan(budget_s=0.1, threads=1, check_parity=False)
    assert gate(baseline.path, unknown, plan=plan, limits=limits).verdict is Verdict.PASS


def test_limits_of_files_decide_without_a_measurement(baseline: Artifact, variant: Variant) -> None:
    def grow(model: onnx.ModelProto) -> None:
        ballast = numpy_helper.from_array(np.ones(1_000_000, np.float32), "ballast")
        model.graph.initializer.append(ballast)

    larger = variant("larger", grow)
    limits = GateLimits(latency=None, size=0.05)
    result = gate(baseline.path, larger, plan=SHORT, limits=limits)
    assert result.verdict is Verdict.REGRESSION
    assert result.metrics[0].name == "size"
    assert result.samples["launches"] == []


def _decide_only(model: onnx.ModelProto, order: list[int] | None = None) -> None:
    """End a graph in labels, under another order of the classes if one is given."""
    if order is not None:
        _end_with(model, "Gather", [numpy_helper.from_array(np.array(order), "order")])
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ArgMax", [name], ["index"], axis=1, keepdims=0))
    model.graph.node.append(
        helper.make_node("Cast", ["index"], ["labels"], to=onnx.TensorProto.UINT8)
    )
    del model.graph.output[:]
    labels = helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, [1, *SIZE])
    model.graph.output.append(labels)


LABELS = {
    "io": IoContract(output=OutputKind.LABELS),
    "outputs": (TensorSpec("labels", "uint8", (1, *SIZE)),),
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("order", "verdict"),
    [
        (None, Verdict.PASS),
        ([4, 3, 2, 1, 0], Verdict.BROKEN),
        ([0, 0, 0, 0, 0], Verdict.BROKEN),
    ],
)
def test_labels_are_compared_class_by_class(
    order: list[int] | None, verdict: Verdict, trained: bool, variant: Variant
) -> None:
    limits = GateLimits(latency=None, size=0.5)
    facts = {**LABELS, "trained": trained}
    right = variant("right", _decide_only, **facts)
    other = variant("other", lambda model: _decide_only(model, order), **facts)
    assert gate(right, other, plan=SHORT, limits=limits).verdict is verdict


def test_int8_that_nobody_verified_is_not_judged_on_scenes(
    baseline: Artifact, variant: Variant
) -> None:
    limits = GateLimits(latency=None, size=0.5)
    known = variant("known", target="onnx-int8")
    assert (
        "gross faults only" in gate(baseline.path, known, plan=SHORT, limits=limits).parity["note"]
    )
    unknown = variant("unknown", target="onnx-int8", passed=None)
    with pytest.raises(ConfigError, match="never passed verify"):
        gate(baseline.path, unknown, plan=SHORT, limits=limits)
    plain = variant("plain", passed=None)
    with pytest.raises(ConfigError, match="never passed verify"):
        gate(known, plain, plan=SHORT, limits=limits)  # An int8 baseline judges as roughly.
    plan = GatePlan(budget_s=0.1, threads=1, data="synthetic")
    assert gate(baseline.path, unknown, plan=plan, limits=limits)


def test_sizes_that_do_not_fit_are_refused(baseline: Artifact) -> None:
    with pytest.raises(ConfigError, match="64x96 only"):
        gate(baseline.path, baseline.path, plan=GatePlan(size=(32, 32)))


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 0}, {"batch_size": 0}, {"budget_s": 0.0}, {"streams": 0}, {"size": (0, 4)},
        {"device": "tpu"}, {"budget_s": float("nan")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GatePlan(**settings)


def test_nothing_runs_on_after_a_gate(baseline: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLANTED, "crash")
    gate(baseline.path, baseline.path, plan=SHORT, start=PlantedChild)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not any(b"worker" in command for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["started", "stopped"])
def test_a_killed_gate_leaves_no_worker(baseline: Artifact, state: str) -> None:
    """A worker that is stopped cannot notice by itself that nobody waits for it any more."""
    command = [sys.executable, "-m", "segdeploy", "gate", *2 * [str(baseline.path)]]
    process = subprocess.Popen([*command, "--no-save", "--no-parity", "--budget", "120s"])
    workers: set[int] = set()
    end = monotonic() + 60
    while monotonic() < end:
        workers = _children(process.pid)
        if workers and (state == "started" or any(_state(each) == b"T" for each in workers)):
            break
    assert monotonic() < end, "no worker came into this state"
    process.kill()
    process.wait()
    end = monotonic() + 30
    while (left := {each for each in workers if _state(each) not in b"Z"}) and monotonic() < end:
        sleep(0.05)
    assert not left


def _children(pid: int) -> set[int]:
    return {int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()}


def _state(pid: int) -> bytes:
    """Return its letter in proc(5): T if stopped, Z if nobody took its exit code; empty if gone."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].strip()[:1]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_free_cores_are_at_least_one() -> None:
    free, busy = free_cores()
    assert 1 <= free <= (os.cpu_count() or 1)
    assert busy >= 0


def test_an_unknown_ratio_does_not_decide() -> None:
    result = GateResult(baseline="a", candidate="b", verdict=Verdict.BROKEN, reason="it crashed")
    assert result.to_dict()["ratio"] is None
    assert not result
