"""Bench against a made-up backend that sleeps, prints, crashes or hangs as told (conftest.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeploy.bench import BenchPlan, bench, measure_interleaved
from segdeploy.bench.inputs import choose_sizes, make_batch
from segdeploy.bench.plan import NUM_BLOCKS
from segdeploy.core.child import Child, child_environment
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    ConfigError,
    RunLockedError,
)
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.results import BenchResult

MakeArtifact = Callable[..., Path]
FAST = BenchPlan(seconds=0, warmup_s=0, threads=1, size=(8, 12))


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


def test_blocks_alternate_so_that_drift_cancels(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    journal = tmp_path / "journal"
    paths = [make_artifact(tmp_path / "run", name, journal=str(journal)) for name in "AB"]
    outcome = measure_interleaved(paths, FAST)
    # Opening and warm-up run once, each block throws one call away and times one.
    start, pair = "AABB", "AABB" + "BBAA"
    assert journal.read_text() == start + pair * (NUM_BLOCKS // 2)
    assert [len(result.samples_ms) for result in outcome.results] == [NUM_BLOCKS] * 2
    assert outcome.results[0].latency_ms["p90"] is not None
    assert outcome.results[0].latency_ms["p99"] is None


@pytest.mark.serial
def test_latency_throughput_and_order_are_those_of_the_calls(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    slow = make_artifact(tmp_path, "slow", sleep=0.02)
    quick = make_artifact(tmp_path, "quick", sleep=0.005)
    results = bench([slow, quick], seconds=0.3, warmup_s=0, threads=1, size=(8, 12), batch_size=4)
    p50 = [result.latency_ms["p50"] or 0 for result in results]
    assert 20 <= p50[0] < 45
    assert 5 <= p50[1] < 15
    assert results[0].throughput_img_s == pytest.approx(4000 / p50[0])
    assert [result.target for result in results] == ["fake-fp32"] * 2


def test_results_are_saved_with_their_evidence(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    folder = make_artifact(tmp_path, "one")
    (result,) = bench([folder], seconds=0, warmup_s=0, threads=3, size=(8, 12))
    saved = BenchResult.from_dict(json.loads((folder / "bench.json").read_text()))
    assert saved == result
    assert saved.input_shape == (1, 3, 8, 12)
    environment = saved.environment
    assert environment["threads"] == 3
    assert environment["block_sizes"] == [1] * NUM_BLOCKS
    assert environment["artifact"] == load_folder(folder).manifest.digest
    assert seen(folder)["threads"] == "3"
    assert load_folder(folder).manifest, "the artifact itself is untouched"


def test_nothing_is_written_without_save(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    folder = make_artifact(tmp_path, "one")
    bench([folder], seconds=0, warmup_s=0, size=(8, 12), save=False)
    assert not (folder / "bench.json").exists()


def test_peak_memory_is_each_artifacts_own(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    paths = [make_artifact(tmp_path, "small"), make_artifact(tmp_path, "large", mib=200)]
    small, large = (result.peak_memory_mib for result in measure_interleaved(paths, FAST).results)
    assert small is not None
    assert large is not None
    assert 180 < large - small < 230


def test_stray_output_of_a_runtime_does_not_break_the_run(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    (result,) = measure_interleaved([make_artifact(tmp_path, "loud", print=True)], FAST).results
    assert len(result.samples_ms) == NUM_BLOCKS


@pytest.mark.parametrize("at", [1, 2, 9])
def test_a_crash_names_the_artifact_and_leaves_the_others(
    tmp_path: Path, at: int, make_artifact: MakeArtifact
) -> None:
    good, bad = make_artifact(tmp_path, "good"), make_artifact(tmp_path, "bad", crash_at=at)
    outcome = measure_interleaved([bad, good], FAST)
    (failure,) = outcome.failures
    assert isinstance(failure, ArtifactError)
    assert str(bad) in failure.message
    assert "SIGABRT" in failure.message
    assert "last words" in failure.hint
    assert [result.path for result in outcome.results] == [str(good)]
    assert (good / "bench.json").exists()
    assert not (bad / "bench.json").exists()


def test_a_hanging_artifact_is_stopped_and_leaves_the_others(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    good, bad = make_artifact(tmp_path, "good"), make_artifact(tmp_path, "bad", hang_at=5)
    start = time.monotonic()
    outcome = measure_interleaved(
        [good, bad], BenchPlan(size=(8, 12), seconds=0, warmup_s=0, limit_s=8)
    )
    assert time.monotonic() - start < 40
    assert "no answer within 8 s" in outcome.failures[0].message
    assert str(bad) in outcome.failures[0].message
    assert [result.path for result in outcome.results] == [str(good)]


def test_a_bug_of_a_backend_ends_in_its_own_log(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    bad = make_artifact(tmp_path, "bad", raise_at=3)
    with pytest.raises(ArtifactError) as caught:
        bench([bad], seconds=0, warmup_s=0, size=(8, 12))
    assert "a bug of the backend" in caught.value.hint


def test_an_error_of_ours_keeps_its_type_across_processes(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(tmp_path, "one")
    with pytest.raises(BackendUnavailableError) as caught:
        bench([folder], device="cuda", size=(8, 12))
    assert caught.value.exit_code == 4
    assert caught.value.hint == "use cpu"
    assert str(folder) in caught.value.message


def test_a_worker_ends_when_its_parent_is_gone() -> None:
    with Child("segdeploy.bench.worker", environment=child_environment(1)) as child:
        child._stdin.close()
        assert child._process.wait(timeout=30) == 0


def test_a_run_in_use_is_refused_before_anything_is_measured(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(tmp_path / "run", "one")
    with run_lock(tmp_path / "run"), pytest.raises(RunLockedError):
        bench([folder], seconds=60, size=(8, 12))
    assert not (folder / "seen.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (0, 5)}, "size"), ({"batch_size": 0}, "batch"), ({"threads": 0}, "threads"),
        ({"seconds": -1}, "seconds"), ({"seconds": float("nan")}, "seconds"),
        ({"warmup_s": 1e9}, "warm-up"), ({"device": "tpu"}, "device"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchPlan(**change)


def test_nothing_to_measure_and_no_such_folder_are_refused(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    with pytest.raises(ConfigError):
        bench([])
    with pytest.raises(ArtifactError, match="no such folder"):
        bench([make_artifact(tmp_path, "one"), tmp_path / "absent"])


def folders(*paths: Path) -> list[ModelFolder]:
    return [load_folder(path) for path in paths]


def test_the_size_is_the_one_asked_then_static_then_designed_then_default(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    static = make_artifact(tmp_path, "static", size=(32, 48))
    designed = make_artifact(tmp_path, "designed", design_size=(96, 128))
    free = make_artifact(tmp_path, "free")
    assert choose_sizes(folders(free), None, 1) == [(512, 512)]
    assert choose_sizes(folders(designed, free), None, 1) == [(96, 128), (512, 512)]
    assert choose_sizes(folders(designed, static), None, 1) == [(32, 48)] * 2
    assert choose_sizes(folders(designed, free), (7, 9), 1) == [(7, 9)] * 2
    other = make_artifact(tmp_path, "other", size=(16, 16))
    assert choose_sizes(folders(static, other), None, 1) == [(32, 48), (16, 16)]
    with pytest.raises(ConfigError, match="32x48 only"):
        choose_sizes(folders(static), (7, 9), 1)


@pytest.mark.parametrize("size", [(1, 1), (7, 41), (64, 48)])
def test_inputs_are_structured_and_have_the_contracts_layout(
    tmp_path: Path, size: tuple[int, int], make_artifact: MakeArtifact
) -> None:
    tensor = load_folder(make_artifact(tmp_path, "tensor")).manifest
    image = load_folder(make_artifact(tmp_path, "image", io=IoContract(InputKind.IMAGE))).manifest
    planes, pixels = make_batch(tensor, size, 2), make_batch(image, size, 2)
    assert planes.shape == (2, 3, *size)
    assert pixels.shape == (2, *size, 3)
    assert [planes.dtype.name, pixels.dtype.name] == ["float32", "uint8"]
    spec = tensor.preprocess
    normal = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert np.allclose(planes, normal.transpose(0, 3, 1, 2), atol=1e-5)
    assert np.array_equal(planes, make_batch(tensor, size, 2))
    assert not np.array_equal(pixels[0], pixels[1])


def test_artifacts_of_different_sizes_are_warned_of(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    first = make_artifact(tmp_path, "first", size=(32, 48))
    second = make_artifact(tmp_path, "second", size=(16, 16))
    plan = BenchPlan(seconds=0, warmup_s=0, threads=1)
    for result in measure_interleaved([first, second], plan, save=False).results:
        assert any("different input sizes" in text for text in result.environment["warnings"])
