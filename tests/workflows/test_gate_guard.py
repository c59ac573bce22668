"""Before the timing: what hangs, what is misnamed, and whose fault it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.bench import bench
from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.verify.cases import feed, plan_cases
from segdeploy.workflows import gate_parity
from segdeploy.workflows.gate import GatePlan, gate

SHORT = GatePlan(budget_s=0.1, threads=1)  # The least number of launches.
FILES = GateLimits(latency=None, size=0.5)
LIMIT_S = 6.0  # Of one answer, opening included.
_ROUNDS = 40_000_000  # Longer than the limit, and yet an end.
Rewrite = Callable[..., Artifact]


@pytest.fixture
def candidate(baseline: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the baseline, to be spoilt."""
    return load_artifact(Path(copytree(baseline.path, tmp_path / "candidate")))


@pytest.fixture
def stored(baseline: Artifact, tmp_path: Path) -> Path:
    """A result of the baseline that was stored."""
    result = bench([baseline.path], threads=1, seconds=0.1, warmup_s=0.0, save=False)[0]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(result.to_dict()))
    return file


def test_a_hang_on_a_later_image_ends_the_candidate_and_not_the_gate(
    stored: Path, candidate: Artifact, rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_parity, "HANG_S", LIMIT_S)
    _hang_on_the_second_image(candidate)
    rewrite(candidate)
    result = gate(stored, candidate.path, plan=SHORT)
    assert result.verdict is Verdict.BROKEN
    assert "no answer within" in result.reason


def _hang_on_the_second_image(artifact: Artifact) -> None:
    """Put a loop before the graph that runs long for the image with this mean."""
    batches = plan_cases(artifact, None, gate_parity.NUM_IMAGES)[0].batches()
    means = [float(feed(batch, artifact.manifest).mean()) for batch in batches]
    assert abs(means[0] - means[1]) > 1e-3
    model = onnx.load(artifact.payload)
    graph = model.graph
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["after" if each == name else each for each in node.input]
    constants: dict[str, Any] = {
        "hang_mean": np.float32(means[1]), "hang_near": np.float32(1e-4),
        "hang_many": np.int64(_ROUNDS), "hang_one": np.int64(1), "hang_zero": np.float32(0),
    }  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    chain = [
        helper.make_node("ReduceMean", [name], ["found"], keepdims=0),
        helper.make_node("Sub", ["found", "hang_mean"], ["gap"]),
        helper.make_node("Abs", ["gap"], ["distance"]),
        helper.make_node("Less", ["distance", "hang_near"], ["is_it"]),
        helper.make_node("Where", ["is_it", "hang_many", "hang_one"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", "hang_zero"], ["looped"], body=_idle()),
        helper.make_node("Add", [name, "looped"], ["after"]),
    ]
    nodes = [*chain, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, artifact.payload)


def _idle() -> onnx.GraphProto:
    def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    kinds = {"go": TensorProto.BOOL, "x": TensorProto.FLOAT}
    return helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        "idle",
        [scalar("round", TensorProto.INT64), *(scalar(n, k) for n, k in kinds.items())],
        [scalar(f"{name}_out", kind) for name, kind in kinds.items()],
    )


def _swapped(artifact: Artifact) -> tuple[str, ...]:
    return tuple(reversed(artifact.manifest.classes))


def test_right_answers_under_swapped_names_are_broken(
    baseline: Artifact, stored: Path, candidate: Artifact, rewrite: Rewrite
) -> None:
    assert gate(baseline.path, candidate.path, plan=SHORT, limits=FILES).verdict is Verdict.PASS
    rewrite(candidate, classes=_swapped(baseline))
    for right in (baseline.path, stored):
        limits = FILES if right is baseline.path else GateLimits()
        result = gate(right, candidate.path, plan=SHORT, limits=limits)
        assert result.verdict is Verdict.BROKEN
        assert "classes" in result.reason
        assert result.parity == {"passed": False}


def test_without_the_checkpoint_the_baselines_names_are_the_right_ones(
    baseline: Artifact, candidate: Artifact, rewrite: Rewrite, tmp_path: Path
) -> None:
    link = baseline.manifest.reference
    assert link is not None
    away = dataclasses.replace(link, digest="0" * 64, hint="nowhere")
    right = load_artifact(Path(copytree(baseline.path, tmp_path / "right")))
    rewrite(right, reference=away)
    rewrite(candidate, reference=away)
    assert gate(right.path, candidate.path, plan=SHORT, limits=FILES).verdict is Verdict.PASS
    rewrite(candidate, reference=away, classes=_swapped(baseline))
    result = gate(right.path, candidate.path, plan=SHORT, limits=FILES)
    assert result.verdict is Verdict.BROKEN


def test_a_baseline_with_swapped_names_is_an_error_and_not_the_candidates(
    baseline: Artifact, candidate: Artifact, rewrite: Rewrite
) -> None:
    rewrite(candidate, classes=_swapped(baseline))
    with pytest.raises(ArtifactError, match=f"baseline {candidate.path} has not the classes"):
        gate(candidate.path, baseline.path, plan=SHORT, limits=FILES)


def test_a_baseline_that_answers_nan_is_an_error_and_not_the_candidates(
    baseline: Artifact, candidate: Artifact, rewrite: Rewrite
) -> None:
    model = onnx.load(candidate.payload)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Add", ["before", "nan"], [name]))
    onnx.save(model, candidate.payload)
    rewrite(candidate)
    with pytest.raises(ArtifactError, match=f"baseline {candidate.path} answers NaN"):
        gate(candidate.path, baseline.path, plan=SHORT, limits=FILES)
