"""Runs that go on: states of all ranks, writes within an epoch, signals, full disks, norms."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import get_worker_info

import segdeploy.train.run as run_module
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, TrainError
from segdeploy.core.folder import load_checkpoint
from segdeploy.data.transforms import TrainingView
from segdeploy.train import TrainConfig, train
from segdeploy.train.folder import RunFolder
from segdeploy.train.log import JsonLines
from segdeploy.train.state import load_state

SMALL: dict[str, Any] = {
    "model": "lraspp_mobilenet_v3_small", "data": "synthetic:64x64:16", "epochs": 2,
    "batch_size": 4, "warmup_steps": 1, "workers": 0, "device": "cpu", "val_pictures": 0,
    "save_minutes": 0.0, "lr": 1e-3,
}  # fmt: skip
DROPPING = {"model": "deeplabv3_mobilenet_v3_large", "data": "synthetic:64x64:8"}


def _config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(out=str(out), **SMALL | changes)


def _stop_after(steps: int) -> Callable[..., contextlib.AbstractContextManager[Callable[[], bool]]]:
    @contextlib.contextmanager
    def flag(*_: object) -> Iterator[Callable[[], bool]]:
        calls = iter(range(10**9))
        yield lambda: next(calls) >= steps - 1

    return flag


def _interrupt(config: TrainConfig, patch: pytest.MonkeyPatch, steps: int) -> None:
    with patch.context() as inner:
        inner.setattr(run_module, "_stop_flag", _stop_after(steps))
        with pytest.raises(KeyboardInterrupt):
            train(config)


@pytest.mark.parametrize(
    "changes",
    [
        DROPPING | {"amp": "bf16", "drop_block": 0.0},
        {"amp": "fp16", "accumulate": 2, "schedule": "one_cycle", "ema_decay": 0.9, "patience": 9,
         "optimizer": "sgd", "on_nan": "skip"},
    ],
)  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Dropout, scaler, parts of a batch, one cycle, average, patience and the best so far."""
    whole = train(_config(tmp_path / "whole", **changes))
    config = _config(tmp_path / "cut", **changes)
    _interrupt(config, monkeypatch, 3)
    assert train(config, resume=True).manifest.digest == whole.manifest.digest
    one, two = (load_state(tmp_path / name / "last") for name in ("whole", "cut"))
    assert dataclasses.replace(one[0], seconds=0) == dataclasses.replace(two[0], seconds=0)
    assert one[1]["scaler"] == two[1]["scaler"]
    states = [state[1]["random_states"][0]["torch"] for state in (one, two)]
    assert torch.equal(*states)


def _start(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "segdeploy", "train", str(recipe), *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip


def _recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in (SMALL | changes).items()]
    path.write_text("\n".join(lines))
    return path


def _wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _step(run: Path) -> int:
    with contextlib.suppress(ArtifactError):
        return load_state(run / "last")[0].step
    return -1


@pytest.mark.slow
def test_two_resumed_processes_with_dropout_are_two_undisturbed_ones(tmp_path: Path) -> None:
    """A scheduler's signal to the parent stops both; each goes on with its own random numbers."""
    changes = DROPPING | {"nproc": 2, "save_minutes": 1e-9, "data": "synthetic:64x64:24"}
    recipe = _recipe(tmp_path, **changes)
    run = tmp_path / "cut"
    process = _start(recipe, "--out", str(run))
    _wait_for(lambda: _step(run) >= 1, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    progress, parts = load_state(run / "last")
    assert progress.step > 0
    ranks = [state["torch"] for state in parts["random_states"]]
    assert len(ranks) == 2
    assert not torch.equal(*ranks)
    cut = train(_config(run, **changes), resume=True)
    whole = train(_config(tmp_path / "whole", **changes))
    assert cut.manifest.digest == whole.manifest.digest
    digests = [load_checkpoint(tmp_path / n / "last").manifest.digest for n in ("cut", "whole")]
    assert digests[0] == digests[1]


def test_a_kill_within_an_epoch_loses_no_more_than_the_setting_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = _recipe(tmp_path, data="synthetic:64x64:4000", log_every=1)
    process = _start(recipe, "--out", str(run), "--save-every-minutes", "0.00001")
    _wait_for(lambda: _step(run) >= 2, process)
    process.kill()
    process.communicate()
    done = len(JsonLines(run / "steps.jsonl", "step").read())
    assert load_state(run / "last")[0].epoch == 0
    assert 0 <= done - _step(run) <= 1


@pytest.mark.parametrize(("minutes", "num"), [(0.0, 1), (1e-9, 4), (60.0, 1)])
def test_the_last_state_is_written_when_it_is_old_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, num: int
) -> None:
    steps = []
    plain = RunFolder.save_last

    def save(folder: RunFolder, trainer: Any) -> None:
        steps.append(trainer.progress.step)
        plain(folder, trainer)

    monkeypatch.setattr(RunFolder, "save_last", save)
    train(_config(tmp_path, save_minutes=minutes, epochs=1))
    assert steps == [*range(1, num + 1), 0]


def test_a_kill_between_the_first_model_and_its_state_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RunFolder.save_last

    def save(folder: RunFolder, trainer: Any) -> None:
        if trainer.progress.epoch == 1:
            raise KeyboardInterrupt
        plain(folder, trainer)

    config = _config(tmp_path / "cut", dropout=True)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_last", save)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    load_checkpoint(tmp_path / "cut" / "checkpoint")
    whole = train(_config(tmp_path / "whole", dropout=True))
    assert train(config, resume=True).manifest.digest == whole.manifest.digest


def test_a_full_disk_within_an_epoch_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow from the second write on, as on a disk without space."""
    plain, limits = RunFolder.save_last, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(folder: RunFolder, trainer: Any) -> None:
        if trainer.progress.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        plain(folder, trainer)

    config = _config(tmp_path, save_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_last", save)
        try:
            with pytest.raises(ArtifactError, match="Cannot write"):
                train(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_state(tmp_path / "last")[0].step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "steps.jsonl"]
    whole = train(_config(tmp_path / "whole"))
    assert train(config, resume=True).manifest.digest == whole.manifest.digest


def test_a_killed_loader_process_ends_a_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TrainingView.__getitem__

    def item(view: TrainingView, index: int) -> tuple[Tensor, Tensor]:
        if view.epoch == 1 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(view, index)

    config = _config(tmp_path, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingView, "__getitem__", item)
        with pytest.raises(TrainError, match="process that reads images has ended") as caught:
            train(config)
    assert "--resume" in caught.value.hint
    assert load_state(tmp_path / "last")[0].epoch == 1
    train(config, resume=True)
    assert load_state(tmp_path / "last")[0].epoch == 2


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("nproc", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_thread")
def test_processes_with_synchronised_norms_train_as_one(
    tmp_path: Path, nproc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps with batch statistics, without dropout: the same losses and weights to 1e-5.

    With one thread each: a depthwise convolution's weights differ by 1.5e-5 between one and two
    threads of a single process already.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes: dict[str, Any] = {
        "data": "synthetic:64x64:8", "crop": (64, 64), "epochs": 3, "batch_size": 8,
        "dropout": False, "optimizer": "sgd", "lr": 1e-3, "sync_batch_norm": True, "val_every": 3,
    }  # fmt: skip
    train(_config(tmp_path / "one", **changes))
    train(_config(tmp_path / "many", nproc=nproc, **changes))
    losses = [
        [json.loads(x)["loss"] for x in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "many")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, many = (load_file(tmp_path / n / "last" / "weights.safetensors") for n in ("one", "many"))
    assert list(one) == list(many)
    for key, value in one.items():
        # Of rounding alone: in float64 the same comparison gives 1e-15.
        torch.testing.assert_close(many[key], value, rtol=1e-5, atol=1e-5)


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailableError, match="there is no no-such-compiler"):
        train(_config(tmp_path, compile=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # By torch's own compiler.
def test_a_compiled_run_is_the_plain_one_but_for_rounding(tmp_path: Path) -> None:
    runs = [train(_config(tmp_path / str(c), compile=c, epochs=1)) for c in (False, True)]
    plain, compiled = (load_file(run.path / "weights.safetensors") for run in runs)
    assert list(plain) == list(compiled)
    lines = [json.loads((tmp_path / str(c) / "log.jsonl").read_text()) for c in (False, True)]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    """Three of the kills of benchmarks/kill_training.py."""
    script = Path(__file__).parents[2] / "benchmarks" / "kill_training.py"
    out = tmp_path / "kills.json"
    subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--two", "0.34", "--lanes", "2",
         "--epochs", "1", "--out", str(out)],
        check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["kills"] == found["resumed"] == 3
    assert found["equal_to_undisturbed"] is True
