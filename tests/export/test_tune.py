"""`segdeploy tune`: variants of a tiny model are built and judged; only the clock is a made one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from segdeploy.bench import BenchOutcome, BenchPlan
from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    UnknownNameError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.results import BenchResult
from segdeploy.export import export
from segdeploy.export.calibration import open_calibration
from segdeploy.graph.policy import CHOICES, load_policy, shipped_policy
from segdeploy.verify import compare_folders
from segdeploy.workflows import tune as tune_module
from segdeploy.workflows.tune import TunePlan, tune
from segdeploy.workflows.tune_search import BestFailedError

DATA = "synthetic"
Cli = Callable[..., tuple[int, str, str]]


class _Clock:
    """Runs nothing: an artifact's time follows from the counts in its own manifest."""

    def __init__(self) -> None:
        self.num_runs = 0

    def __call__(
        self, paths: Sequence[Path], plan: BenchPlan, *, save: bool, progress: Any
    ) -> BenchOutcome:
        assert not save
        self.num_runs += 1
        return BenchOutcome([self._result(path) for path in paths], [])

    @staticmethod
    def _result(path: Path) -> BenchResult:
        manifest = load_artifact(path).manifest
        groups = manifest.options["int8"]["groups"]
        base = 10.0 - 2.0 * groups["classifier"].get("int8", 0)
        base += 1.0 * groups["first_convolution"].get("int8", 0)
        blocks = [base * (1 + 0.001 * block) for block in range(10)]
        samples = [ms for block in blocks for ms in (block * 3, block)]
        return BenchResult(
            target="t", path=str(path), samples_ms=samples, batch_size=1,
            input_shape=(1, 3, 64, 96), peak_memory_mib=None,
            environment={"block_sizes": [2] * 10},
        )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(tune_module, "measure_interleaved", made)
    return made


def _plan(checkpoint: Checkpoint, work: Path, **more: Any) -> TunePlan:
    return TunePlan(
        checkpoint=checkpoint.path, target="onnx-int8", calibration=DATA, work=work,
        num_calibration_images=2, threads=1, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


def test_it_keeps_what_the_clock_favours_and_writes_why(
    checkpoint: Checkpoint, work: Path, clock: _Clock, tmp_path: Path
) -> None:
    told: list[str] = []
    found = tune(_plan(checkpoint, work), tmp_path / "mine.toml", report=told.append)
    policy = load_policy(str(tmp_path / "mine.toml"), "onnx")
    assert policy == found.policy
    assert policy.groups["classifier"] == "int8"
    assert policy.groups["first_convolution"] != "int8"
    assert policy.activations == shipped_policy("onnx").activations
    trials = policy.evidence["trials"]
    assert trials[0]["change"] == "everything int8"
    (kept,) = [t for t in trials if t["kept"] and t["change"] != "everything int8"][-1:]
    assert kept["ratio"] < 1
    assert kept["interval"] == [kept["ratio"]] * 2
    assert sum("no choice changes" not in line for line in told) == len(trials)
    assert clock.num_runs == len(trials) + sum(t["kept"] for t in trials)  # These ran twice.
    assert policy.evidence["versions"]["onnxruntime"] == onnxruntime.__version__
    assert (policy.evidence["model"], policy.evidence["threads"]) == ("tiny", 1)
    images = open_calibration(DATA, 2)
    assert policy.evidence["groups_asked"] == "all"
    assert policy.evidence["calibration_images"] == 2
    assert f'calibration_digest = "{images.digest}"' in (tmp_path / "mine.toml").read_text()
    assert "tuned" in policy.reasons["classifier"]


def test_a_second_run_measures_nothing_and_finds_the_same(
    checkpoint: Checkpoint, work: Path, clock: _Clock, tmp_path: Path
) -> None:
    first = tune(_plan(checkpoint, work), tmp_path / "first.toml")
    before = clock.num_runs
    built = {file: file.stat().st_mtime_ns for file in work.rglob("model.onnx")}
    second = tune(_plan(checkpoint, work), tmp_path / "second.toml")
    assert second.policy.evidence == first.policy.evidence
    assert clock.num_runs == before
    assert {file: file.stat().st_mtime_ns for file in work.rglob("model.onnx")} == built


def test_an_interrupted_run_goes_on_where_it_was(
    checkpoint: Checkpoint, clock: _Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> BenchOutcome:
        if clock.num_runs == 1:
            raise KeyboardInterrupt
        return clock(*arguments, **named)

    plan = _plan(checkpoint, tmp_path / "work", groups=("classifier",))
    out = tmp_path / "mine.toml"
    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "measure_interleaved", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(plan, out)
    assert not out.exists()
    found = tune(plan, out)
    trials = found.policy.evidence["trials"]
    assert clock.num_runs == len(trials) + sum(t["kept"] for t in trials)


@pytest.mark.usefixtures("clock")
def test_flips_are_those_that_verify_counts_between_the_two_graphs(
    checkpoint: Checkpoint, work: Path, tmp_path: Path
) -> None:
    found = tune(_plan(checkpoint, work), tmp_path / "mine.toml")
    outcome = export(
        checkpoint.path, ["onnx-int8"], work, calibration=DATA, num_calibration_images=2,
        int8_policy="all", name="check",
    )[0]  # fmt: skip
    report = compare_folders(
        load_artifact(outcome.path), load_artifact(work / "onnx-fp32"), data=DATA
    )
    (trial,) = [t for t in found.policy.evidence["trials"] if t["change"] == "everything int8"]
    assert trial["flip_rate"] == report.flip_rate


@pytest.mark.usefixtures("clock")
def test_only_the_groups_asked_for_are_changed(
    checkpoint: Checkpoint, work: Path, tmp_path: Path
) -> None:
    found = tune(_plan(checkpoint, work, groups=("classifier",)), tmp_path / "mine.toml")
    changed = {t["change"].partition(" = ")[0] for t in found.policy.evidence["trials"]}
    assert changed == {"classifier"}
    assert found.policy.evidence["groups_asked"] == ["classifier"]
    assert 'groups_asked = ["classifier"]' in (tmp_path / "mine.toml").read_text()


@pytest.mark.usefixtures("clock")
def test_variants_that_cannot_be_built_lose_and_the_table_says_why(
    checkpoint: Checkpoint, tmp_path: Path, cli: Cli
) -> None:
    """Its one convolution that is int8 is the whole of it; the others are float in the policy."""
    pytest.importorskip("openvino")
    code, out, err = cli(
        "tune", str(checkpoint.path), "--target", "openvino-int8", "--calibration", DATA,
        "--calibration-images", "2", "--threads", "1", "--group", "convolution",
        "--work", str(tmp_path / "work"), "--out", str(tmp_path / "mine.toml"),
    )  # fmt: skip
    assert code == 0, err
    assert "convolution = weights: not kept, it failed: OpenVINO would run" in err
    assert "it failed: OpenVINO would run" in " ".join(out.replace("│", " ").split())
    policy = load_policy(str(tmp_path / "mine.toml"), "openvino")
    assert policy.groups == shipped_policy("openvino").groups
    failed = {t["change"]: t for t in policy.evidence["trials"]}
    assert set(failed) == {"convolution = weights", "convolution = float"}
    assert all(not t["kept"] and t["reason"].startswith("it failed") for t in failed.values())


@pytest.mark.parametrize("is_best", [False, True])
def test_what_does_not_run_beside_the_best_loses_and_the_best_may_not_fail(
    is_best: bool, checkpoint: Checkpoint, work: Path, clock: _Clock, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def crashed(paths: Sequence[Path], *arguments: Any, **named: Any) -> BenchOutcome:
        found = clock(paths, *arguments, **named).results
        return BenchOutcome([found[is_best]], [BackendUnavailableError("no such kernel")])

    monkeypatch.setattr(tune_module, "measure_interleaved", crashed)
    plan, out = _plan(checkpoint, work, groups=("classifier",), seconds=1.0), tmp_path / "m.toml"
    if is_best:
        with pytest.raises(BestFailedError, match="does not run: no such kernel"):
            tune(plan, out)
    else:
        trials = tune(plan, out).policy.evidence["trials"]
        assert {t["reason"] for t in trials} == {"it failed: no such kernel"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("onnx-fp32", "onnx-fp32 has no placement"),
        ("executorch-int8", "executorch-int8 has no placement"),
        ("tensorrt-int8", "runs on 'cuda'"),
    ],
)
def test_targets_that_cannot_be_tuned_are_refused_before_any_work(
    target: str, said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan = TunePlan(
        checkpoint=checkpoint.path, target=target, calibration=DATA, work=tmp_path / "work"
    )
    with pytest.raises(UnsupportedTargetError, match=said):
        tune(plan, tmp_path / "mine.toml")
    assert not (tmp_path / "work").exists()


def test_an_unknown_group_and_a_place_that_cannot_be_written_are_told(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match="relu"):
        tune(_plan(checkpoint, tmp_path / "work", groups=("relu",)), tmp_path / "mine.toml")
    with pytest.raises(ArtifactError, match="Cannot write the policy"):
        tune(_plan(checkpoint, tmp_path / "work"), tmp_path / "none" / "mine.toml")


@pytest.mark.usefixtures("clock")
def test_the_command_prints_a_table_or_a_document(
    checkpoint: Checkpoint, work: Path, cli: Cli, tmp_path: Path
) -> None:
    line = [
        "tune", str(checkpoint.path), "--target", "onnx-int8", "--calibration", DATA,
        "--calibration-images", "2", "--threads", "1", "--work", str(work),
        "--out", str(tmp_path / "mine.toml"),
    ]  # fmt: skip
    code, out, err = cli(*line)
    assert code == 0, err
    assert "hard_swish" in out
    assert "everything int8" in err
    code, out, err = cli(*line, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document["groups"]) == set(CHOICES)
    assert document["target"] == "onnx-int8"
    assert shipped_policy("onnx").groups != document["groups"]


@pytest.mark.slow
def test_with_the_real_clock_it_ends_with_a_policy_that_exports(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan = _plan(checkpoint, tmp_path / "work", seconds=0.5)
    found = tune(plan, tmp_path / "mine.toml")
    ratios = np.asarray([t["ratio"] for t in found.policy.evidence["trials"]])
    assert np.isfinite(ratios).all()
    export(
        checkpoint.path, ["onnx-int8"], tmp_path / "run", calibration=DATA,
        num_calibration_images=2, int8_policy=str(tmp_path / "mine.toml"),
    )  # fmt: skip
