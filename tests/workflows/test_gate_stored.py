"""A stored bench.json as a gate's baseline: on the same machine, whole, and launch by launch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planted_worker import PLANTED, PlantedChild
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import Artifact
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.workflows.gate import GatePlan, gate
from segdeploy.workflows.gate_stored import StoredBaseline

SHORT = GatePlan(budget_s=0.1, threads=1)  # The least number of launches.


def _stored(baseline: Artifact, file: Path, **environment: Any) -> Path:
    from segdeploy.bench import bench

    result = bench([baseline.path], threads=1, seconds=0.2, warmup_s=0.0, save=False)[0].to_dict()
    result["environment"].update(environment)
    file.write_text(json.dumps(result))
    return file


def test_a_stored_baseline_serves_on_the_same_machine_only(
    baseline: Artifact, tmp_path: Path
) -> None:
    limits = GateLimits(latency=9)
    here = _stored(baseline, tmp_path / "bench.json")
    same = gate(here, baseline.path, plan=GatePlan(budget_s=0.1), limits=limits)
    assert same.verdict in {Verdict.PASS, Verdict.IMPROVEMENT}
    assert same.environment["threads"] == 1
    elsewhere = _stored(baseline, tmp_path / "other.json", cpu="Some other CPU")
    with pytest.raises(ConfigError, match="Some other CPU"):
        gate(elsewhere, baseline.path, plan=SHORT, limits=limits)
    versions = {"versions": {"onnxruntime": "0.0.1"}}  # Known only once it has run.
    older = _stored(baseline, tmp_path / "older.json", runtime=versions)
    with pytest.raises(ConfigError, match=r"onnxruntime=0\.0\.1"):
        gate(older, baseline.path, plan=SHORT, limits=limits)


def test_a_stored_baseline_has_a_memory_and_a_start_for_each_launch(
    baseline: Artifact, tmp_path: Path
) -> None:
    file = _stored(baseline, tmp_path / "bench.json")
    plain = json.loads(file.read_text())
    half = len(plain["samples_ms"]) // 2
    plain["launches"] = [half, len(plain["samples_ms"]) - half]
    plain["launch_memory_mib"] = [100.0, 110.0]
    plain["cold_starts_ms"] = [{"total": 200.0}, {"total": 300.0}]
    file.write_text(json.dumps(plain))
    sides = StoredBaseline.load(file).sides
    assert [side.memory_mib for side in sides] == [100.0, 110.0]
    assert [side.cold_start_ms for side in sides] == [200.0, 300.0]
    assert [len(side.blocks_ms[0]) for side in sides] == plain["launches"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("environment",), None), (("environment",), []), (("environment", "threads"), "two"),
        (("environment", "threads"), None), (("environment", "threads"), 10**9),
        (("environment", "runtime"), [1]),
        (("environment", "gpus"), ["a"]), (("input_shape",), [1]), (("cold_starts_ms",), 5),
        (("launch_memory_mib",), ["abc"]), (("launch_memory_mib",), [0]), (("launches",), [0]),
        (("samples_ms",), [1.0, -1.0]),
    ],
)  # fmt: skip
def test_a_tampered_result_is_refused(
    place: tuple[str, ...], value: object, stored_plain: dict[str, Any], tmp_path: Path
) -> None:
    plain = json.loads(json.dumps(stored_plain))
    inner = plain
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(plain))
    with pytest.raises(ArtifactError):
        StoredBaseline.load(file)


@pytest.fixture(scope="module")
def stored_plain(baseline: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A result of a bench, as it is stored."""
    file = _stored(baseline, tmp_path_factory.mktemp("stored") / "bench.json")
    plain: dict[str, Any] = json.loads(file.read_text())
    return plain


def test_another_machine_never_fails_a_build(
    baseline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = _stored(baseline, tmp_path / "other.json", cpu="Some other CPU")
    monkeypatch.setenv(PLANTED, "slow:9")
    plan = GatePlan(budget_s=0.1, threads=1, allow_different_machine=True)
    result = gate(elsewhere, baseline.path, plan=plan, start=PlantedChild)
    assert (result.verdict, result.verdict.exit_code) == (Verdict.UNJUDGED, 0)
    assert result.latency is not None
    assert "not judged" in result.latency.reason
    assert result.latency.ratio is not None
    assert result.latency.ratio > 3  # It is shown all the same.
    assert any("Some other CPU" in line for line in result.environment["different_machine"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"in_process": True}, "--in-process"), ({"measured": None}, "who knows what")],
)
def test_a_baseline_of_another_kind_of_measurement_is_refused(
    environment: dict[str, Any],
    message: str,
    baseline: Artifact,
    stored_plain: dict[str, Any],
    tmp_path: Path,
) -> None:
    merged = {**stored_plain["environment"], **environment}
    known = {name: value for name, value in merged.items() if value is not None}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({**stored_plain, "environment": known}))
    with pytest.raises(ConfigError, match=message):
        gate(file, baseline.path, plan=SHORT)


def test_a_limit_that_a_stored_baseline_cannot_decide_is_refused_at_once(
    baseline: Artifact, stored_plain: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(stored_plain))
    with pytest.raises(ConfigError, match="throughput"):
        gate(file, baseline.path, plan=SHORT, limits=GateLimits(throughput=0.05))


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"samples_ms": []}'])
def test_a_file_that_is_no_result_is_refused(
    content: str, baseline: Artifact, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(content)
    with pytest.raises(ArtifactError):
        gate(file, baseline.path, plan=SHORT)
    with pytest.raises(ArtifactError):
        gate(tmp_path / "none.json", baseline.path, plan=SHORT)
