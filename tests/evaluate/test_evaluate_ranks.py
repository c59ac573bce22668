"""Evaluation shared by ranks: one process's result bit by bit, and one exit code for all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Checkpoint
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate, shards
from segdeploy.export import export

DATA = "synthetic:64x96:28"  # 7 images to validate on.
Ranks = Callable[..., list["subprocess.CompletedProcess[str]"]]


def _command(path: Path, *flags: str, data: str = DATA) -> list[str]:
    command = [sys.executable, "-m", "segdeploy", "evaluate", str(path), "--data", data, "--json"]
    return [*command, *flags]


def _document(path: Path, **options: Any) -> dict[str, Any]:
    found = evaluate(path, data=DATA, save=False, **options).to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _check_equal(ranks: list[subprocess.CompletedProcess[str]], expected: dict[str, Any]) -> None:
    assert [r.returncode for r in ranks] == [0] * len(ranks), "".join(r.stderr for r in ranks)
    assert json.loads(ranks[0].stdout) == expected
    assert [r.stdout for r in ranks[1:]] == [""] * (len(ranks) - 1)


def test_two_ranks_count_as_one_process(tiny_checkpoint: Checkpoint, run_ranks: Ranks) -> None:
    command = _command(tiny_checkpoint.path, "--boundary", "--no-save")
    _check_equal(run_ranks([command] * 2), _document(tiny_checkpoint.path, boundary=True))


def _slurm(rank: int, world: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "73915", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": str(world), "SLURM_NTASKS": "64",
        "SLURM_STEP_NODELIST": "node[01-02]",
    }  # fmt: skip


def test_more_tasks_of_slurm_than_images(tiny_checkpoint: Checkpoint, run_ranks: Ranks) -> None:
    command = _command(tiny_checkpoint.path, "--limit", "2", "--no-save")
    ranks = run_ranks([command] * 3, _slurm)
    _check_equal(ranks, _document(tiny_checkpoint.path, limit=2))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx-fp32", "torchscript-fp32"])
@pytest.mark.parametrize("world", [2, 4])
def test_artifacts_count_as_one_process(
    tiny_checkpoint: Checkpoint, tmp_path: Path, run_ranks: Ranks, target: str, world: int
) -> None:
    export(tiny_checkpoint.path, [target], tmp_path)
    expected = _document(tmp_path / target, limit=3)
    assert _document(tmp_path / target, limit=3, nproc=world) == expected
    command = _command(tmp_path / target, "--limit", "3", "--no-save")
    _check_equal(run_ranks([command] * world), expected)


def test_a_failing_rank_ends_all_at_one_exit_code(
    tiny_checkpoint: Checkpoint, tmp_path: Path, run_ranks: Ranks
) -> None:
    """Rank 1 meets a damaged label while rank 0 counts; nothing is written."""
    root, before = tmp_path / "data", sorted(tiny_checkpoint.path.iterdir())
    scene = open_dataset(DATA, "val")[0]
    for i, value in enumerate((0, 77)):
        for kind in ("images", "labels"):
            (root / kind / "val").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(root / "images" / "val" / f"{i}.png")
        Image.new("L", (96, 64), value).save(root / "labels" / "val" / f"{i}.png")
    (root / "classes.txt").write_text("background\ndisc\nbox\ntriangle\nbar\n")
    ranks = run_ranks([_command(tiny_checkpoint.path, data=f"folder:{root}")] * 2)
    assert [r.returncode for r in ranks] == [2, 2]
    assert "77" in ranks[1].stderr
    assert "Rank 1 of 2 failed" in ranks[0].stderr
    assert "Traceback" not in ranks[0].stderr + ranks[1].stderr
    assert sorted(tiny_checkpoint.path.iterdir()) == before


def test_a_rank_without_its_device_ends_all_at_once(
    tiny_checkpoint: Checkpoint, run_ranks: Ranks
) -> None:
    """Before anything is counted, and at the exit code of a missing device."""
    command = _command(tiny_checkpoint.path, "--no-save")
    ranks = run_ranks([command, [*command, "--device", "cuda:7"]])
    assert [r.returncode for r in ranks] == [4, 4], ranks[0].stderr + ranks[1].stderr
    assert "cuda:7" in ranks[1].stderr


_DYING = """
import os, signal, sys
from segdeploy.cli import main
from segdeploy.evaluate import stage
if os.environ["RANK"] == "1":
    stage.count_alone = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["segdeploy", "evaluate", sys.argv[1], "--data", sys.argv[2], "--no-save"]
sys.exit(main())
"""


def test_a_killed_rank_is_a_clear_error_in_the_others(
    tiny_checkpoint: Checkpoint, run_ranks: Ranks
) -> None:
    ranks = run_ranks([[sys.executable, "-c", _DYING, str(tiny_checkpoint.path), DATA]] * 2)
    assert [r.returncode for r in ranks] == [2, -9]
    assert "lost another process" in ranks[0].stderr
    assert "Traceback" not in ranks[0].stderr


def test_nproc_in_a_rank_is_refused(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _slurm(0, 2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--nproc asks for more"):
        evaluate(tiny_checkpoint.path, data=DATA, nproc=2)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not shards.is_main()
