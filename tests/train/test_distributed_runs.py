"""Whole runs of several processes: four as one, torchrun's restarts, two hosts. Minutes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segdeploy.core.folder import load_checkpoint
from segdeploy.train import TrainConfig, train

pytestmark = pytest.mark.slow
BASE = TrainConfig(
    model="lraspp_mobilenet_v3_small", data="synthetic:64x64:12", out="", epochs=3, batch_size=12,
    workers=0, device="cpu", optimizer="sgd", lr=0.1, warmup_steps=2, dropout=False,
    freeze_batch_norm=True, class_weights="sqrt_median", clip_norm=1.0,
)  # fmt: skip


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("world", "accumulate"), [(4, 1), (2, 3)])
def test_processes_train_as_one(tmp_path: Path, world: int, accumulate: int) -> None:
    """Three steps; each process has an odd number of images, in one part or in several."""
    config = dataclasses.replace(BASE, nproc=world, accumulate=accumulate)
    one = train(dataclasses.replace(BASE, out=str(tmp_path / "one")))
    many = train(dataclasses.replace(config, out=str(tmp_path / "many")))
    for first, second in zip(_log(tmp_path / "one"), _log(tmp_path / "many"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    ones, others = (load_file(c.path.parent / "last/weights.safetensors") for c in (one, many))
    for key, value in ones.items():
        torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5)


_DYING = """
import os, signal, sys
from pathlib import Path
from segdeploy.cli import main
from segdeploy.train import run

def die_once(*arguments, plan=run.plan_epoch, calls=[]):
    calls.append(1)
    if len(calls) == 3 and not mark.exists():  # At the start, for epoch 0, for epoch 1.
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plan(*arguments)

mark = Path(sys.argv[1])
if os.environ["RANK"] == sys.argv[2]:
    run.plan_epoch = die_once
sys.argv = ["segdeploy", *sys.argv[3:]]
sys.exit(main())
"""


@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_group_that_torchrun_restarts_goes_on(tmp_path: Path, victim: str) -> None:
    """The command line is the same, without --resume; the loader of rank 0 outlives it."""
    script = tmp_path / "dying.py"
    script.write_text(_DYING)
    config = dataclasses.replace(BASE, batch_size=4, out=str(tmp_path / "whole"), nproc=2)
    recipe = tmp_path / "recipe.toml"
    whole = train(config)
    recipe.write_text((whole.path / "train.toml").read_text().replace("workers = 0", "workers = 1"))
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--max-restarts", "1", str(script), str(tmp_path / "mark"), victim, "train",
            str(recipe), "--out", str(tmp_path / "cut"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    assert "lost the connection" in done.stderr
    found = load_checkpoint(tmp_path / "cut" / "checkpoint")
    assert found.manifest.digest == whole.manifest.digest


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "two_hosts.py"
    spec = importlib.util.spec_from_file_location("two_hosts", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_two_hosts_train_evaluate_and_survive_a_loss(tmp_path: Path) -> None:
    script = _script()
    try:
        with script.two_hosts() as hosts:
            found = script.measure(tmp_path, hosts)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    assert found["largest_relative_difference_to_one_process"] < 1e-5
    assert found["digests"]["two_by_two"] == found["digests"]["four"] == found["digests"]["lost"]
    assert found["evaluation_equals_one_process"]
    assert found["lost_host"]["exit_code"] != 0
    assert all("lost the connection" in line for line in found["lost_host"]["errors"])
    assert found["lost_host"]["errors"]
