"""Who may start a run, and which of them goes on by itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.core.errors import ConfigError, RunLockedError
from segdeploy.core.lock import run_lock
from segdeploy.frameworks.launch_env import Launch
from segdeploy.train import TrainConfig
from segdeploy.train.claim import check_launch, claimed, goes_on
from segdeploy.train.config import config_toml

CONFIG = TrainConfig(
    model="lraspp_mobilenet_v3_small", data="synthetic:64x64:16", out="", batch_size=12, epochs=1,
    workers=0, device="cpu",
)  # fmt: skip
FOUR = Launch("torchrun", 0, 0, 4, "localhost", 29_500)


def test_a_recipe_that_asks_for_other_processes_is_refused() -> None:
    for nproc in (1, 4):
        check_launch(dataclasses.replace(CONFIG, nproc=nproc), FOUR)
    with pytest.raises(ConfigError, match="torchrun has started 4 processes, and nproc = 2"):
        check_launch(dataclasses.replace(CONFIG, nproc=2), FOUR)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    check_launch(dataclasses.replace(CONFIG, accumulate=3), FOUR)
    for batch_size, accumulate in ((6, 1), (12, 2)):  # 3 images of a process, in 2 parts.
        config = dataclasses.replace(CONFIG, batch_size=batch_size, accumulate=accumulate)
        with pytest.raises(ConfigError, match="not divisible by 4"):
            check_launch(config, FOUR)


def test_only_a_restarted_run_with_a_state_goes_on_by_itself(tmp_path: Path) -> None:
    assert not goes_on(tmp_path, restarts=1)
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "manifest.json").touch()
    assert goes_on(tmp_path, restarts=1)
    assert not goes_on(tmp_path, restarts=0)


_HOLDER = """
import os, sys, time
from pathlib import Path
from segdeploy.core.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read(1)
"""


def test_a_restart_waits_for_the_lock_of_the_dead(tmp_path: Path) -> None:
    """Loader processes outlive a killed rank by seconds, and hold its lock."""
    config = dataclasses.replace(CONFIG, out=str(tmp_path))
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(RunLockedError), claimed(config, resume=False):
            pass
        started = time.monotonic()
        with pytest.raises(RunLockedError), run_lock(tmp_path, wait_s=0.5):
            pass
        assert time.monotonic() - started >= 0.5
        holder.stdin.close()
        with claimed(config, resume=False, restarts=1):
            pass


def test_going_on_after_a_kill_waits_for_its_loaders(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, out=str(tmp_path))
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "manifest.json").touch()
    (tmp_path / "last" / "train.toml").write_bytes(config_toml(config))
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        release = threading.Timer(0.5, holder.stdin.close)
        release.start()
        with claimed(config, resume=True):
            release.join()


Ranks = Callable[..., list["subprocess.CompletedProcess[str]"]]


def test_a_folder_that_is_refused_ends_all_ranks_at_once(tmp_path: Path, run_ranks: Ranks) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "manifest.json").touch()
    command = [
        sys.executable, "-m", "segdeploy", "train", "--model", CONFIG.model, "--data", CONFIG.data,
        "--batch-size", "4", "--device", "cpu", "--out", str(tmp_path),
    ]  # fmt: skip
    ranks = run_ranks([command] * 2)
    assert [r.returncode for r in ranks] == [2, 2], ranks[0].stderr + ranks[1].stderr
    assert "already holds a training run" in ranks[0].stderr
    assert "Rank 0 of 2 failed" in ranks[1].stderr
