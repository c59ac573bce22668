"""Learning rates of every schedule, against the formulas and torch's own schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from segdeploy.train.config import TrainConfig
from segdeploy.train.schedule import rate_factor


def _rates(num_steps: int, **settings: Any) -> list[float]:
    config = TrainConfig(model="unet", data="synthetic", out="run", **settings)
    return [rate_factor(config, step, num_steps) for step in range(num_steps)]


def _torch_rates(num_steps: int, kind: Any, **settings: Any) -> list[float]:
    """The rates that a scheduler of torch gives an optimizer with the rate 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = kind(optimizer, **settings)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < num_steps else None
    return rates


def test_poly_warms_up_linearly_then_follows_its_formula() -> None:
    factors = _rates(100, warmup_steps=10)
    np.testing.assert_allclose(factors[:10], (np.arange(10) + 1) / 11)
    np.testing.assert_allclose(factors[10:], (1 - np.arange(90) / 90) ** 0.9)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "one_cycle"])
def test_a_warm_up_longer_than_the_run_still_reaches_the_peak(schedule: str) -> None:
    factors = _rates(10, warmup_steps=500, schedule=schedule)
    assert max(factors) == 1.0
    assert min(factors) > 0


@pytest.mark.parametrize("schedule", ["poly", "cosine", "one_cycle"])
def test_a_run_of_one_step_has_a_rate(schedule: str) -> None:
    assert _rates(1, schedule=schedule) == [1.0]


def test_cosine_warms_up_then_is_that_of_torch() -> None:
    factors = _rates(60, warmup_steps=10, schedule="cosine")
    np.testing.assert_allclose(factors[:10], (np.arange(10) + 1) / 11)
    expected = _torch_rates(50, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50)
    np.testing.assert_allclose(factors[10:], expected)


def test_step_is_torchs_with_milestones_in_epochs() -> None:
    factors = _rates(
        24, warmup_steps=0, epochs=6, schedule="step", step_epochs=(2, 5), step_factor=0.3
    )
    milestones = [8, 20]
    expected = _torch_rates(
        24, torch.optim.lr_scheduler.MultiStepLR, milestones=milestones, gamma=0.3
    )
    np.testing.assert_allclose(factors, expected)


def test_one_cycle_is_that_of_torch() -> None:
    factors = _rates(50, warmup_steps=14, schedule="one_cycle")
    expected = _torch_rates(
        50, torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=50, pct_start=15 / 50
    )
    np.testing.assert_allclose(factors, expected, rtol=1e-9, atol=1e-12)
