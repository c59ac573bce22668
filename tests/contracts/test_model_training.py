"""Twenty steps of the real training stage for every named model, in fp32 and bf16: the loss falls.

Slow; chosen by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from segdeploy.train import TrainConfig, train
from segdeploy.zoo import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_twenty_steps_lower_the_loss(
    name: str, amp: Literal["none", "bf16"], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(TrainConfig(
        model=name, data="synthetic:64x64:20", out=str(out), epochs=4, batch_size=4,
        scale=(1.0, 1.0), jitter=0.0, lr=1e-3, warmup_steps=5, amp=amp, workers=0, val_every=4,
        val_limit=1, device="cpu",
    ))  # fmt: skip
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]
