"""Whole training runs, tiny: resuming is exact, several processes equal one, nothing is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import segdeploy.train.run as run_module
from segdeploy.core.errors import CheckpointError, ConfigError, RunLockedError, TrainError
from segdeploy.core.folder import load_checkpoint
from segdeploy.core.lock import run_lock
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.train import TrainConfig, train
from segdeploy.train.config import resumed_config
from segdeploy.train.state import STATE
from segdeploy.zoo import create_model, load_module

prepare_torchvision()
from torchvision import models  # noqa: E402

BASE = TrainConfig(
    model="lraspp_mobilenet_v3_small",
    data="synthetic:64x64:16",
    out="",
    epochs=2,
    batch_size=4,
    lr=1e-3,
    warmup_steps=2,
    workers=0,
    ema_decay=0.5,
    device="cpu",
)


def _config(out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(BASE, out=str(out), **changes)


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _stop_after(steps: int) -> Callable[..., contextlib.AbstractContextManager[Callable[[], bool]]]:
    """A stand-in for Ctrl-C at a chosen step."""

    @contextlib.contextmanager
    def flag(*_: object) -> Iterator[Callable[[], bool]]:
        calls = iter(range(10**9))
        yield lambda: next(calls) >= steps - 1

    return flag


def test_a_run_leaves_a_checkpoint_a_log_and_a_falling_loss(tmp_path: Path) -> None:
    checkpoint = train(_config(tmp_path, epochs=4, note="for a test"))
    lines = _log(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert checkpoint.manifest.note == "for a test"
    assert checkpoint.manifest.design_size == (64, 64)
    assert max(line["mean_iou"] for line in lines) == checkpoint.manifest.options["best_mean_iou"]
    assert (checkpoint.path / "train.toml").is_file()
    assert not load_module(checkpoint).training


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole = train(_config(tmp_path / "whole"))
    config = _config(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(steps))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    resumed = train(config, resume=True)
    assert resumed.manifest.digest == whole.manifest.digest
    dropped = {"seconds", "images_s", "data_s", "step_s"}
    logs = [
        [{k: v for k, v in line.items() if k not in dropped} for line in _log(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path, epochs=1)
    first = train(config)
    assert train(config, resume=True).manifest == first.manifest
    assert len(_log(tmp_path)) == 1


def test_an_existing_run_is_not_overwritten_and_a_missing_one_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(_config(tmp_path), resume=True)
    train(_config(tmp_path, epochs=1))
    with pytest.raises(ConfigError, match="already holds a training run"):
        train(_config(tmp_path, epochs=1))


def test_a_resumed_run_keeps_its_recipe(tmp_path: Path) -> None:
    train(_config(tmp_path, epochs=1))
    assert resumed_config(None, {"out": str(tmp_path), "workers": 0}).epochs == 1
    with pytest.raises(ConfigError, match=r"started with lr = 0.001, not 0.5"):
        resumed_config(None, {"out": str(tmp_path), "lr": 0.5})


def test_a_damaged_state_is_a_checkpoint_error(tmp_path: Path) -> None:
    train(_config(tmp_path, epochs=1))
    state = tmp_path / "last" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=STATE):
        train(_config(tmp_path, epochs=1), resume=True)


def test_a_run_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(RunLockedError):
        train(_config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_class_count_start_a_run_with_a_new_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = train(_config(tmp_path / "source", epochs=1))
    config = _config(tmp_path / "next", epochs=1, data="synthetic_binary:64x64:16", lr=1e-9,
                     ema_decay=0.0, freeze_batch_norm=True)  # fmt: skip
    start = train(dataclasses.replace(config, init=str(source.path)))
    said = capsys.readouterr().err
    assert "re-made classifier.low_classifier.weight" in said
    before = load_file(source.path / "weights.safetensors")
    after = load_file(start.path / "weights.safetensors")
    assert after["classifier.high_classifier.weight"].shape[0] == 1
    torch.testing.assert_close(after["backbone.0.0.weight"], before["backbone.0.0.weight"])


def test_a_loss_that_is_not_finite_stops_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="loss is"):
        train(_config(tmp_path, lr=1e30, warmup_steps=0, optimizer="sgd"))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_training_runs(tmp_path: Path, amp: str) -> None:
    train(_config(tmp_path, amp=amp, epochs=1))
    assert _log(tmp_path)[0]["loss"] > 0


def test_an_auxiliary_head_is_trained(tmp_path: Path) -> None:
    checkpoint = train(
        _config(tmp_path, model="deeplabv3_mobilenet_v3_large", epochs=1, data="synthetic:64x64:4")
    )
    torch.manual_seed(BASE.seed)
    trained = load_file(checkpoint.path / "weights.safetensors")
    assert trained["aux_classifier.4.bias"].abs().sum() > 0


def test_too_few_pixels_for_batch_norm_is_an_error_that_helps(tmp_path: Path) -> None:
    """deeplabv3 pools an image to one value per channel."""
    config = _config(tmp_path, model="deeplabv3_mobilenet_v3_large", batch_size=1)
    with pytest.raises(TrainError, match="cannot train on 1x3x64x64") as caught:
        train(config)
    assert "--batch-size" in caught.value.hint


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Three steps with frozen batch norm and no dropout: same losses and weights to 1e-5."""
    changes: dict[str, Any] = {
        "data": "synthetic:64x64:12", "epochs": 3, "batch_size": 12, "ema_decay": 0.0,
        "freeze_batch_norm": True, "dropout": False, "class_weights": "sqrt_median",
        "optimizer": "sgd", "lr": 0.1,
    }  # fmt: skip
    one = train(_config(tmp_path / "one", **changes))
    two = train(_config(tmp_path / "two", nproc=2, **changes))
    for first, second in zip(_log(tmp_path / "one"), _log(tmp_path / "two"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
        assert first["mean_iou"] == pytest.approx(second["mean_iou"], abs=1e-3)
    ones, twos = (load_file(c.path.parent / "last" / "weights.safetensors") for c in (one, two))
    for key, value in ones.items():
        torch.testing.assert_close(twos[key], value, rtol=1e-5, atol=1e-5)


def test_a_frozen_encoder_does_not_move_and_the_rest_does(tmp_path: Path) -> None:
    """Neither weights nor norm statistics, in one process or two."""
    config = _config(tmp_path / "run", epochs=1, freeze="encoder", ema_decay=0.0)
    torch.manual_seed(config.seed)
    fresh = create_model(config.model, 5).state_dict()
    train(config)
    config = dataclasses.replace(config, out=str(tmp_path / "two"), nproc=2, epochs=2)
    for run in (Path(config.out).parent / "run", train(config).path.parent):
        found = load_file(run / "last" / "weights.safetensors")
        for key, value in found.items():
            if key.startswith("backbone."):
                torch.testing.assert_close(value, fresh[key], rtol=0, atol=0)
        moved = [k for k, v in found.items() if not torch.equal(v, fresh[k])]
        assert set(moved) == {k for k in found if k.startswith("classifier.")}
        assert 'freeze = "encoder"' in (run / "last" / "train.toml").read_text()


def test_a_resumed_frozen_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(_config(tmp_path / "whole", freeze="encoder"))
    config = _config(tmp_path / "cut", freeze="encoder")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(4))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    settings = resumed_config(None, {"out": config.out})
    assert settings.freeze == "encoder"
    assert train(settings, resume=True).manifest.digest == whole.manifest.digest


def test_a_model_without_an_encoder_cannot_freeze_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no child 'encoder' or 'backbone'"):
        train(_config(tmp_path, model="unet", freeze="encoder"))


def test_what_was_loaded_at_the_start_is_kept_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mobilenet.pth"
    torch.save({"model": models.mobilenet_v3_small(weights=None).state_dict(),
                "args": Namespace(lr=1)}, source)  # fmt: skip
    config = _config(tmp_path / "run", init=str(source))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    said = capsys.readouterr().err
    assert "arguments of its training script" in said
    assert "keys 'features....' as 'backbone....'" in said
    source.unlink()  # A resumed run has its own weights.
    kept = train(config, resume=True).manifest.options["init"]
    assert kept["source"] == str(source)
    assert kept["num_loaded"] > 200
    assert all(key.startswith("classifier.") for key in (*kept["remade"], *kept["skipped"]))


def _presence_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net with a presence head of its own, in the current folder."""
    (folder / "presence_nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.conv = nn.Conv2d(3, num_classes, 3, padding=1)
                self.presence = nn.Linear(3, num_classes)

            def forward(self, x):
                return {"out": self.conv(x), "se": self.presence(x.mean((2, 3)))}
    """)
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_presence_head_is_trained_as_one_over_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _presence_model(tmp_path, monkeypatch)
    changes: dict[str, Any] = {
        "model": "presence_nets:Net", "ema_decay": 0.0, "optimizer": "sgd", "lr": 0.1,
        "weight_decay": 0.0, "momentum": 0.0, "epochs": 1, "data": "synthetic:64x64:8",
        "crop": (48, 48),
    }  # fmt: skip
    states = {}
    for name, more in (("one", {}), ("two", {"nproc": 2}), ("none", {"se_weight": 0.0})):
        train(_config(tmp_path / name, **changes, **more))
        states[name] = load_file(tmp_path / name / "last" / "weights.safetensors")
    torch.manual_seed(BASE.seed)
    fresh = create_model("presence_nets:Net", 5).state_dict()
    for key, value in states["one"].items():
        torch.testing.assert_close(states["two"][key], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(value, fresh[key]) is False
        is_head = key.startswith("presence.")
        assert torch.equal(states["none"][key], fresh[key]) is is_head
    sys.modules.pop("presence_nets")


def _start_cli(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "segdeploy", *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_for(condition: Callable[[], object], what: str) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


def _epochs_done(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


_ENDLESS = (
    "train", "--model", BASE.model, "--data", "synthetic:64x64:16", "--batch-size", "4",
    "--epochs", "500", "--workers", "0", "--device", "cpu",
)  # fmt: skip


def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path) -> None:
    process = _start_cli(*_ENDLESS, "--out", str(tmp_path))
    _wait_for(lambda: _epochs_done(tmp_path) >= 1, "the first epoch")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    load_checkpoint(tmp_path / "last")


@pytest.mark.slow
def test_torchrun_trains_as_our_own_launcher(tmp_path: Path) -> None:
    line = (
        "train", "--model", BASE.model, "--data", "synthetic:64x64:16", "--batch-size", "4",
        "--epochs", "1", "--workers", "0", "--device", "cpu", "--lr", "0.001",
    )  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", "-m", "segdeploy"]  # fmt: skip
    done = subprocess.run(
        [*torchrun, *line, "--out", str(tmp_path / "torchrun"), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    ours = subprocess.run(
        [sys.executable, "-m", "segdeploy", *line, "--out", str(tmp_path / "own"), "--nproc", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    assert load_checkpoint(Path(document["path"])).manifest.digest == (
        load_checkpoint(tmp_path / "own" / "checkpoint").manifest.digest
    )


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_with_a_clear_error_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    process = _start_cli(*_ENDLESS, "--nproc", "2", "--out", str(tmp_path))
    _wait_for(lambda: _epochs_done(tmp_path) >= 1, "the first epoch")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 2, said
    assert "rank 1 was killed by signal 9" in said
    assert "lost the connection" in said
    assert "Traceback" not in said
    done = load_checkpoint(tmp_path / "last")
    again = _start_cli(*_ENDLESS, "--nproc", "2", "--out", str(tmp_path), "--resume")
    before = _epochs_done(tmp_path)
    _wait_for(lambda: _epochs_done(tmp_path) > before, "another epoch")
    again.send_signal(signal.SIGINT)
    os.killpg(again.pid, signal.SIGINT)
    again.communicate(timeout=60)
    assert load_checkpoint(tmp_path / "last").manifest.digest != done.manifest.digest
