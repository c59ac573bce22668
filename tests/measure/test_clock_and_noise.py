from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segdeploy.frameworks.threads import cpu_limit_cores
from segdeploy.measure import (
    describe_environment,
    peak_memory_mib,
    sample_ms,
    usable_cores,
    warm_up,
)
from segdeploy.measure.noise import (
    busy_seconds,
    load_warnings,
    others_warnings,
    robust_variation,
    sample_warnings,
)


@pytest.mark.serial
def test_a_sample_is_the_duration_of_one_call_in_ms() -> None:
    samples = sample_ms(lambda: time.sleep(0.02), 0.1)
    assert 2 <= len(samples) <= 5
    assert min(samples) >= 20
    assert np.median(samples) < 60


def test_there_is_a_sample_even_without_time() -> None:
    calls: list[int] = []
    assert len(sample_ms(lambda: calls.append(1), 0)) == len(calls) == 1
    assert len(sample_ms(lambda: calls.append(1), 0, at_least=7)) == 7
    assert len(sample_ms(lambda: calls.append(1), 60, at_most=3)) == 3


def test_warm_up_goes_by_time() -> None:
    start = time.perf_counter()
    calls = warm_up(lambda: time.sleep(0.001), 0.1)
    assert time.perf_counter() - start >= 0.1
    assert calls >= 2


def test_variation_is_the_standard_deviation_of_normal_samples() -> None:
    samples = np.random.default_rng(0).normal(100, 7, 20_000).tolist()
    assert robust_variation(samples) == pytest.approx(0.07, rel=0.03)


def test_one_interrupted_call_does_not_make_samples_noisy() -> None:
    samples = [10.0, 10.1, 9.9, 10.05, 9.95] * 4
    assert not sample_warnings([*samples, 900.0])
    assert "Noisy" in sample_warnings([10.0, 20.0] * 10)[0]
    assert "Only 3 samples" in sample_warnings([1.0, 1.0, 1.0])[0]


def test_a_busy_machine_and_a_saving_governor_are_said() -> None:
    cores = os.cpu_count() or 1
    assert not load_warnings([0.0, 0.0, 0.0], "performance")
    assert not load_warnings(None, None)
    assert "busy" in load_warnings([float(cores), 0.0, 0.0], None)[0]
    assert "powersave" in load_warnings([0.0, 0.0, 0.0], "powersave")[0]
    assert not others_warnings(None)
    assert not others_warnings(0.01)
    assert "busy" in others_warnings(float(cores))[0]


def test_busy_time_grows_with_work() -> None:
    before = busy_seconds()
    if before is None:
        pytest.skip("/proc/stat is not readable here")
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = busy_seconds()
    assert after is not None
    assert after - before >= 0.2


def test_peak_memory_sees_what_was_freed_again() -> None:
    before = peak_memory_mib()
    if before is None:
        pytest.skip("/proc/self/status is not readable here")
    block = np.ones(60 * 2**20, np.uint8)
    del block
    code = (
        "from segdeploy.measure import peak_memory_mib\n"
        "before = peak_memory_mib(); block = bytearray(100 * 2**20); del block\n"
        "print(peak_memory_mib() - before)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert 90 < float(answer.stdout) < 130


def test_the_fingerprint_says_what_it_ran_on_and_is_json() -> None:
    import msgspec

    found = describe_environment()
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
    assert found["num_cores"] == os.cpu_count()
    assert found["packages"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    if found["memory_mib"] is not None:
        assert found["memory_mib"] > 256


def test_malloc_settings_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    variables = describe_environment()["variables"]
    assert variables["MALLOC_TRIM_THRESHOLD_"] == "123"
    assert "SECRET_TOKEN" not in variables


def test_usable_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_cores() == 1


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (1.6, 2), (0.3, 1), (64.0, 4)])
def test_usable_cores_obey_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    from segdeploy.frameworks import threads

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "cpu_limit_cores", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000"}, None),
        ({}, None),
    ],
)
def test_a_quota_is_read_from_both_kinds_of_cgroup(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    assert cpu_limit_cores(tmp_path) == cores
