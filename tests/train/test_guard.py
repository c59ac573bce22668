"""Iterations that are not finite: nothing of them reaches the weights, and the batch is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segdeploy.core.errors import TrainError
from segdeploy.data.transforms import TrainingView
from segdeploy.train import TrainConfig, train
from segdeploy.train.batches import epoch_batches
from segdeploy.train.guard import MOST_SKIPS
from segdeploy.train.losses.weighted import WeightedSum
from segdeploy.train.state import load_state

NUM, BATCH = 12, 4


def _config(out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": "lraspp_mobilenet_v3_small", "data": f"synthetic:64x64:{NUM}", "epochs": 1,
        "batch_size": BATCH, "warmup_steps": 1, "workers": 0, "device": "cpu", "ema_decay": 0.5,
        "val_pictures": 0, "log_every": 1,
    }  # fmt: skip
    return TrainConfig(out=str(out), **settings | changes)


def _bad_samples(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """Let some images hold a value that is not a number."""
    plain = TrainingView.__getitem__

    def item(view: TrainingView, index: int) -> tuple[Tensor, Tensor]:
        image, label = plain(view, index)
        return (image * math.nan if index in bad else image), label

    monkeypatch.setattr(TrainingView, "__getitem__", item)


def test_a_bad_batch_stops_the_run_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = epoch_batches(NUM, BATCH, 0, 0)[1]
    _bad_samples(monkeypatch, batch[2])
    with pytest.raises(TrainError, match=r"loss is nan at epoch 0, step 1.*bad_batch\.pt"):
        train(_config(tmp_path))
    kept = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert kept["indices"] == batch
    assert len(kept["names"]) == BATCH
    assert (kept["epoch"], kept["step"]) == (0, 1)
    assert math.isnan(kept["loss"])
    assert kept["labels"].shape == (BATCH, 64, 64)
    assert [bool(image.isfinite().all()) for image in kept["images"]] == [True, True, False, True]


def test_a_skipped_iteration_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a last batch that is bad, all ends as before it; but the schedule has gone on."""
    batches = epoch_batches(NUM, BATCH, 0, 0)
    stages = {}
    cases = (("all", "none", batches[2][:1]), ("more", "fp16", batches[1][:1] + batches[2][:2]))
    for name, amp, bad in cases:
        with monkeypatch.context() as patch:
            _bad_samples(patch, *bad)
            train(_config(tmp_path / name, on_nan="skip", amp=amp))
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("left out") == (1 if name == "all" else 2)
        stages[name] = load_state(tmp_path / name / "last")
        weights = load_file(tmp_path / name / "last" / "weights.safetensors")
        assert all(w.isfinite().all() for w in weights.values())
    progress, parts = stages["all"]
    assert (progress.epoch, progress.skipped, progress.skipped_in_row) == (1, 1, 1)
    assert stages["more"][0].skipped == 2
    assert all(v.isfinite().all() for v in parts["model"].values())
    assert parts["average"]["num_updates"] == 2
    assert int(parts["model"]["backbone.0.1.num_batches_tracked"]) == 2
    line = json.loads((tmp_path / "all" / "log.jsonl").read_text())
    assert line["skipped"] == 1
    assert math.isfinite(line["loss"])


def test_gradients_that_are_not_finite_do_not_reach_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the root of zero: the loss is finite, its slope is not."""
    plain = WeightedSum.totals

    def totals(loss: WeightedSum, logits: Tensor, label: Tensor) -> Tensor:
        return plain(loss, logits, label) + (logits * 0).sum().abs().sqrt()

    monkeypatch.setattr(WeightedSum, "totals", totals)
    with pytest.raises(TrainError, match="norm of the gradients is nan at epoch 0, step 0"):
        train(_config(tmp_path))
    assert (tmp_path / "bad_batch.pt").is_file()


def test_nothing_but_bad_iterations_end_a_run_that_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bad_samples(monkeypatch, *range(NUM))
    config = _config(tmp_path, on_nan="skip", epochs=MOST_SKIPS, val_every=MOST_SKIPS, val_limit=1,
                     crop=(32, 32))  # fmt: skip
    with pytest.raises(TrainError, match=f"the {MOST_SKIPS}th in a row"):
        train(config)
    progress, _ = load_state(tmp_path / "last")
    assert progress.skipped == MOST_SKIPS // 3 * 3
