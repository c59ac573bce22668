"""Ranges of unsigned bytes: against a slow search that rounds the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeploy.graph.byte_range import ByteRange, Side, least_squared_error

Values = NDArray[np.float64]


def side(values: Values) -> Side:
    magnitude = np.sort(np.abs(values))
    return Side(magnitude, np.ones(magnitude.size), float(magnitude.max(initial=0.0)))


def rounding_error(values: Values, low: float, high: float) -> float:
    found = ByteRange.between(low, high)
    whole = np.clip(np.rint(values / found.scale) + found.zero_point, 0, 255)
    return float(((whole - found.zero_point) * found.scale - values).__pow__(2).sum())


@pytest.mark.parametrize("shape", ["relu", "hard_swish", "heavy tails", "negative only"])
def test_no_pair_of_ends_rounds_clearly_better(shape: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, 4000)
    values = {
        "relu": np.maximum(x, 0),
        "hard_swish": x * np.clip(x / 6 + 0.5, 0, 1),
        "heavy tails": rng.standard_t(3, 4000),
        "negative only": -np.abs(x),
    }[shape]
    values = values[values != 0]
    low, high = least_squared_error(side(values[values < 0]), side(values[values > 0]))
    assert (low == 0) == (values.min() > 0)
    assert (high == 0) == (values.max() < 0)
    tried = [
        rounding_error(values, values.min(initial=0) * a, values.max(initial=0) * b)
        for a in np.linspace(0.1, 1, 19)
        for b in np.linspace(0.1, 1, 19)
    ]
    assert rounding_error(values, low, high) <= 1.05 * min(tried)


def model_error(values: Values, low: Values, high: Values) -> Values:
    """The error that is to be least, value by value."""
    rounding = ((high - low) / 255) ** 2 / 12
    inside = np.minimum(values**2, rounding)
    beyond = np.maximum(values - high, low - values)
    found: Values = np.where(beyond > 0, beyond**2, inside).sum(axis=-1)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("small", [1.0, 0.3, 0.01])
def test_no_pair_of_the_clips_to_try_has_a_smaller_error(seed: int, small: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, 60)
    values[values < 0] *= small
    low, high = least_squared_error(side(values[values < 0]), side(values[values > 0]))
    lows, highs = (end * np.arange(1, 201)[:, None] / 200 for end in (values.min(), values.max()))
    best = min(model_error(values, each, highs).min() for each in lows)
    assert model_error(values, np.array(low), np.array(high)) == pytest.approx(best, rel=1e-9)


def test_what_lies_beyond_a_clip_is_what_exceeds_it() -> None:
    magnitude, weight = np.array([1.0, 2.0, 2.0, 5.0]), np.array([3.0, 1.0, 2.0, 4.0])
    clips = np.array([0.0, 1.0, 1.5, 2.0, 4.5, 5.0, 6.0])
    number, distance = Side(magnitude, weight, 5.0).beyond(clips)
    for clip, found, far in zip(clips, number, distance, strict=True):
        outside = magnitude > clip
        assert found == weight[outside].sum()
        assert far == pytest.approx((weight * (magnitude - clip) ** 2)[outside].sum())


def test_zero_is_a_grid_point() -> None:
    found = ByteRange.between(-0.375, 6.0)
    assert found.zero_point == 15
    assert found.scale == pytest.approx(6.375 / 255)
    assert (found.low, found.high) == pytest.approx((-0.375, 6.0))
    assert ByteRange.between(0.0, 6.0).zero_point == 0
    assert ByteRange.between(-6.0, 0.0).zero_point == 255
    assert ByteRange.between(0.0, 0.0).scale == 1.0
    moved = ByteRange.between(-0.38, 6.0)  # 15.19 steps.
    assert moved.zero_point == 15
    assert moved.low == pytest.approx(-15 * 6.38 / 255)
