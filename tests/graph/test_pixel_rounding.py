"""Rounding for pixels: the least e . R e by trying everything, and what it is for, on a picture."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from segdeploy.graph.pixel_rounding import round_for_pixels

LIMIT = 127
Weights = NDArray[np.float64]


def make_weights(seed: int, *shape: int, spread: float = 20) -> Weights:
    found: Weights = np.random.default_rng(seed).normal(0, spread, shape)
    return found


def cost(errors: Weights) -> float:
    """Return e . R e, the correlations written out by hand for 1 x 2 pixels of 2 channels."""
    apart, other = 0.95, 0.9
    same = np.array([[1, apart], [apart, 1]])
    whole = np.block([[same, other * same], [other * same, same]])
    return float(errors.ravel() @ whole @ errors.ravel())


@pytest.mark.parametrize("seed", range(20))
def test_a_small_kernel_is_rounded_as_well_as_it_can_be(seed: int) -> None:
    """Coordinate descent may stop short of the least, never far, nor behind plain rounding."""
    weights = make_weights(seed, 1, 2, 1, 2)
    found = cost(round_for_pixels(weights, LIMIT) - weights)
    sides = [(np.floor(w) - 1, np.floor(w), np.ceil(w), np.ceil(w) + 1) for w in weights.ravel()]
    least = min(cost(np.array(chosen) - weights.ravel()) for chosen in product(*sides))
    assert found <= cost(np.rint(weights) - weights) + 1e-9
    assert found <= least + 0.25


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
)
def test_whole_numbers_near_the_weights_and_within_the_limit(
    seed: int, shape: tuple[int, int, int, int]
) -> None:
    weights = np.clip(make_weights(seed, *shape, spread=80), -LIMIT, LIMIT)
    found = round_for_pixels(weights, LIMIT)
    assert found.shape == weights.shape
    assert np.array_equal(found, np.rint(found))
    assert np.abs(found).max() <= LIMIT
    assert np.abs(found - weights).max() < 2
    # A flat picture: all errors add up, to half a step at most instead of half a step each.
    room = np.abs(weights).max(axis=(1, 2, 3)) < LIMIT - 2
    total = np.abs((found - weights).sum(axis=(1, 2, 3)))
    assert (total[room] <= 0.6 + 0.02 * weights[0].size).all()
    assert np.array_equal(round_for_pixels(weights, LIMIT), found)


def test_whole_weights_stay() -> None:
    weights = np.rint(make_weights(0, 4, 3, 3, 3))
    assert np.array_equal(round_for_pixels(weights, LIMIT), weights)


def test_the_answer_to_a_smooth_picture_is_off_by_less() -> None:
    rng = np.random.default_rng(5)
    picture = ndimage.gaussian_filter(rng.normal(size=(3, 80, 80)), (0, 4, 4)) * 900
    picture += picture.mean(axis=0) * 3
    weights = make_weights(1, 16, 3, 3, 3)

    def answer(kernel: Weights) -> Weights:
        return np.stack([ndimage.correlate(picture, one)[1] for one in kernel])

    exact = answer(weights)
    plain, found = (
        np.sqrt(np.mean((answer(each) - exact) ** 2))
        for each in (np.rint(weights), round_for_pixels(weights, LIMIT))
    )
    assert found < plain / 2


def test_what_is_no_number_ends_it() -> None:
    weights = make_weights(0, 2, 3, 3, 3)
    weights[1, 0, 0, 0] = np.nan
    assert np.array_equal(
        round_for_pixels(weights, LIMIT)[0], round_for_pixels(weights[:1], LIMIT)[0]
    )
