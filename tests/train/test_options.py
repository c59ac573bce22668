"""Whole runs with the options of a recipe: sums of losses, parts, clipping, patience."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import segdeploy.train.run as run_module
from segdeploy.core.errors import ConfigError
from segdeploy.train import TrainConfig, train, validation
from segdeploy.train.state import Progress

PLAIN: dict[str, Any] = {
    "model": "lraspp_mobilenet_v3_small", "data": "synthetic:64x64:12", "epochs": 3,
    "batch_size": 12, "warmup_steps": 1, "workers": 0, "device": "cpu", "optimizer": "sgd",
    "lr": 0.1, "freeze_batch_norm": True, "dropout": False,
}  # fmt: skip


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "0.5*focal+dice+ohem_cross_entropy", "class_weights": "sqrt_median"},
        {"loss": "lovasz", "accumulate": 3, "clip_norm": 0.1, "head_lr_factor": 2.0,
         "decay_norms": False, "schedule": "cosine"},
    ],
)  # fmt: skip
def test_two_processes_train_as_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Also where each works its six images through in three parts."""
    one = train(TrainConfig(out=str(tmp_path / "one"), **PLAIN | changes | {"accumulate": 1}))
    two = train(TrainConfig(out=str(tmp_path / "two"), nproc=2, **PLAIN | changes))
    for first, second in zip(_log(tmp_path / "one"), _log(tmp_path / "two"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    ones, twos = (load_file(c.path.parent / "last" / "weights.safetensors") for c in (one, two))
    for key, value in ones.items():
        torch.testing.assert_close(twos[key], value, rtol=1e-5, atol=1e-5)


def _stop_after(steps: int) -> Callable[..., contextlib.AbstractContextManager[Callable[[], bool]]]:
    @contextlib.contextmanager
    def flag(*_: object) -> Iterator[Callable[[], bool]]:
        calls = iter(range(10**9))
        yield lambda: next(calls) >= steps - 1

    return flag


def test_a_resumed_run_with_all_options_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PLAIN | {
        "batch_size": 4, "epochs": 2, "schedule": "cosine", "clip_norm": 0.5, "optimizer": "adam",
        "loss": "cross_entropy(smoothing=0.1)+dice", "head_lr_factor": 10.0, "accumulate": 2,
        "decay_norms": False, "lr": 1e-3, "freeze_batch_norm": False,
    }  # fmt: skip
    whole = train(TrainConfig(out=str(tmp_path / "whole"), **settings))
    config = TrainConfig(out=str(tmp_path / "cut"), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(4))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert train(config, resume=True).manifest.digest == whole.manifest.digest
    assert [x["loss"] for x in _log(tmp_path / "cut")] == [
        x["loss"] for x in _log(tmp_path / "whole")
    ]


@pytest.mark.parametrize("nproc", [1, 2])
def test_patience_ends_a_run_that_no_longer_gets_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nproc: int
) -> None:
    """With a rate of nothing the first validation stays the best."""
    settings = PLAIN | {"epochs": 9, "lr": 1e-30, "patience": 2}
    config = TrainConfig(out=str(tmp_path), nproc=nproc, **settings)
    first = train(config)
    assert len(_log(tmp_path)) == 3
    if nproc == 1:  # What ranks say goes past the capture.
        assert "stopped early: no better mIoU in 2 validations" in capsys.readouterr().err
        assert train(config, resume=True).manifest == first.manifest
        assert len(_log(tmp_path)) == 3


def test_patience_counts_validations_since_the_best() -> None:
    progress = Progress()
    told: list[dict[str, float | None]] = [
        {"mean_iou": 0.2}, {}, {"mean_iou": 0.1}, {"mean_iou": None}, {"mean_iou": 0.3},
    ]  # fmt: skip
    assert [(progress.record(scores), progress.stale) for scores in told] == [
        (True, 0), (False, 0), (False, 1), (False, 2), (True, 0),
    ]  # fmt: skip
    assert progress.best == 0.3


def test_patience_without_a_validation_split_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "open_validation", lambda *_: None)
    with pytest.raises(ConfigError, match="no validation split"):
        train(TrainConfig(out=str(tmp_path), **PLAIN | {"patience": 1}))


def test_a_loss_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is for binary"):
        train(TrainConfig(out=str(tmp_path), **PLAIN | {"loss": "dice+binary_cross_entropy"}))
