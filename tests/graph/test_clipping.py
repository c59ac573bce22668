"""The four ways to clip, each against what it is by definition, on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from segdeploy.core.errors import ConfigError
from segdeploy.core.target import ClipMethod
from segdeploy.graph.clipping import (
    MOST_DB,
    NUM_ENTROPY_BINS,
    Histogram,
    TensorRange,
    _divergence,
    choose_clip,
    clipped_share,
    edges,
    signal_to_noise,
)

Values = NDArray[np.float32]


def _count(*parts: Values, floor: float | None = None) -> Histogram:
    found = Histogram(floor)
    for part in parts:
        assert found.add(part)
    return found


@pytest.fixture(scope="module")
def values() -> Values:
    rng = np.random.default_rng(3)
    found: Values = np.maximum(rng.laplace(size=60_000), 0).astype(np.float32) * 3
    return found


def test_a_histogram_counts_every_value_once_in_the_bin_that_holds_it(values: Values) -> None:
    found = _count(values, -values[:100])
    assert found.num_zeros == np.count_nonzero(values == 0) + np.count_nonzero(values[:100] == 0)
    assert found.total == values.size + 100
    assert found.abs_max == values.max()
    magnitudes = np.concatenate([values, values[:100]])
    slow = np.histogram(magnitudes[magnitudes > 0], edges())[0]
    np.testing.assert_array_equal(found.counts, slow)
    bounds = edges()
    assert np.all(np.diff(bounds) <= bounds[:-1] / 1000)


def test_parts_and_their_order_do_not_matter(values: Values) -> None:
    whole = _count(values)
    parts = [np.ascontiguousarray(p) for p in np.array_split(np.flip(values), 7)]
    again = _count(*parts)
    np.testing.assert_array_equal(again.counts, whole.counts)
    assert (again.abs_max, again.num_zeros) == (whole.abs_max, whole.num_zeros)


def test_large_tensors_are_counted_in_chunks_like_small_ones() -> None:
    rng = np.random.default_rng(0)
    large = rng.standard_normal((3, 2**18 + 5)).astype(np.float32)
    np.testing.assert_array_equal(_count(large).counts, _count(*large).counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told_and_adds_nothing(bad: float) -> None:
    found = _count(np.ones(4, np.float32))
    assert not found.add(np.asarray([1, bad, 2], np.float32))
    assert found.total == 4
    assert found.abs_max == 1


def test_extreme_magnitudes_have_a_bin() -> None:
    found = _count(np.asarray([1e-44, 1e-30, 3e38, -3e38], np.float32))
    assert found.total == 4
    assert found.abs_max == np.float32(3e38)
    assert found.counts[0] == 2
    assert found.counts[-1] == 2
    assert np.isfinite(choose_clip(found).scale)


def test_what_is_below_the_floor_counts_as_the_floor_in_choosing_alone() -> None:
    found = _count(np.asarray([-9, -3, 1], np.float32), floor=-3.0)
    assert found.abs_max == 9
    assert found.raised().abs_max == 3
    chosen = choose_clip(found, ClipMethod.MIN_MAX)
    assert (chosen.abs_max, chosen.clip, chosen.floor) == (9, 3, -3)
    assert chosen.bytes.low == pytest.approx(-3, abs=chosen.bytes.scale)
    assert chosen.clipped_share == chosen.bytes.clipped_share == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", list(ClipMethod))
@pytest.mark.parametrize("floor", [-3.0, -0.7, 0.0])
def test_a_floor_steers_the_range_and_no_fact(method: ClipMethod, floor: float) -> None:
    values = np.random.default_rng(4).normal(-1, 3, 60_000).astype(np.float32)
    found = choose_clip(_count(values, floor=floor), method, 99.0)
    raised = choose_clip(_count(np.maximum(values, np.float32(floor))), method, 99.0)
    assert found.clip == raised.clip
    assert (found.bytes.scale, found.bytes.zero_point) == (
        raised.bytes.scale,
        raised.bytes.zero_point,
    )
    assert found.abs_max == np.abs(values).max() > raised.abs_max
    signed = np.abs(np.rint(values.astype(np.float64) / found.scale)) > 127
    assert found.clipped_share == pytest.approx(signed.mean(), abs=5e-4)
    whole = np.rint(values.astype(np.float64) / found.bytes.scale) + found.bytes.zero_point
    outside = (whole < 0) | (whole > 255)
    assert found.bytes.clipped_share == pytest.approx(outside.mean(), abs=5e-4)
    assert outside.mean() > 0.1


@pytest.mark.parametrize("end", [127, 127.4, 127.6, 140])
def test_both_grids_clip_what_is_more_than_half_a_step_outside(end: float) -> None:
    """One definition: what rounds to the last step is not clipped."""
    values = np.asarray([end, -1, 2, 3], np.float32)
    expected = 0.25 if end > 127.5 else 0
    assert clipped_share(_count(values), 1.0, -127.0, 127.0) == expected
    assert clipped_share(_count(-values), 1.0, -127.0, 127.0) == expected
    assert clipped_share(_count(values), 1.0, 0.0, 127.0) == 0.25 + expected


@pytest.mark.parametrize("ends", [(-127, 127), (0, 255), (-40, 215), (-200, 55)])
@pytest.mark.parametrize("step", [0.005, 0.03, 0.2])
def test_signal_to_noise_is_that_of_the_rounded_values(ends: tuple[int, int], step: float) -> None:
    values = np.random.default_rng(0).normal(0.7, 1.5, 100_000).astype(np.float32)
    exact = values.astype(np.float64)
    rounded = np.clip(np.rint(exact / step), *ends) * step
    slow = 10 * np.log10(np.mean(exact**2) / np.mean((exact - rounded) ** 2))
    found = signal_to_noise(_count(values), step, ends[0] * step, ends[1] * step)
    assert found == pytest.approx(slow, abs=0.05)


def test_an_exact_grid_is_told_as_the_most_that_can_be_told() -> None:
    assert signal_to_noise(_count(np.zeros(9, np.float32)), 1.0, -127.0, 127.0) == MOST_DB
    assert signal_to_noise(_count(np.full(9, 4, np.float32)), 1.0, -127.0, 127.0) == MOST_DB


@pytest.mark.parametrize("method", list(ClipMethod))
def test_a_tensor_that_is_always_zero_gets_a_harmless_scale(method: ClipMethod) -> None:
    assert choose_clip(_count(np.zeros(10, np.float32)), method) == TensorRange(0.0, 0.0, 0.0)
    assert choose_clip(Histogram(), method).scale == 1.0


@pytest.mark.parametrize("method", list(ClipMethod))
def test_a_constant_tensor_is_reached(method: ClipMethod) -> None:
    found = choose_clip(_count(np.full(1000, -2.5, np.float32)), method)
    assert found.abs_max == 2.5
    assert found.clip == pytest.approx(2.5, rel=1e-2)
    assert found.clipped_share == 0


@pytest.mark.parametrize("method", list(ClipMethod))
def test_a_clip_lies_within_the_values(method: ClipMethod, values: Values) -> None:
    found = choose_clip(_count(values), method)
    assert 0 < found.clip <= found.abs_max == values.max()
    clipped = np.mean(values > 127.5 * found.scale)
    assert found.clipped_share == pytest.approx(clipped, abs=2e-4)


def test_min_max_is_the_largest_magnitude(values: Values) -> None:
    assert choose_clip(_count(-values), ClipMethod.MIN_MAX).clip == values.max()


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.99, 100])
def test_a_percentile_is_that_of_all_values(values: Values, percentile: float) -> None:
    found = choose_clip(_count(values), ClipMethod.PERCENTILE, percentile)
    slow = np.percentile(values, percentile, method="inverted_cdf")
    assert found.clip == pytest.approx(slow, rel=2e-3, abs=1e-15)


def test_a_percentile_of_zero_is_no_clip() -> None:
    """Of one value in a thousand the percentile is a zero: the largest serves, not the least."""
    sparse = np.zeros(100_000, np.float32)
    sparse[:9] = np.linspace(0.001, 8, 9)
    assert choose_clip(_count(sparse), ClipMethod.PERCENTILE, 99.9).clip == 8


@pytest.mark.parametrize("percentile", [0, -1, 100.01, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        choose_clip(_count(np.ones(3, np.float32)), ClipMethod.PERCENTILE, percentile)


def test_entropy_matches_a_slow_search(values: Values) -> None:
    found = choose_clip(_count(values), ClipMethod.ENTROPY)
    positive = values[values > 0].astype(np.float64)
    linear = np.histogram(positive, NUM_ENTROPY_BINS, (0, values.max()))[0].astype(np.float64)

    def divergence(size: int) -> float:
        reference = linear[:size].copy()
        reference[-1] += linear[size:].sum()
        candidate = np.zeros(size)
        for level in range(128):
            inside = [i for i in range(size) if i * 128 // size == level and linear[i] > 0]
            for i in inside:
                candidate[i] = sum(linear[j] for j in inside) / len(inside)
        return float(
            special.rel_entr(reference / reference.sum(), candidate / sum(candidate)).sum()
        )

    chosen = round(found.clip / float(values.max()) * NUM_ENTROPY_BINS)
    best = min(divergence(size) for size in range(128, NUM_ENTROPY_BINS + 1, 32))
    assert divergence(chosen) <= 1.05 * best


@pytest.mark.parametrize("size", [128, 200, 300])
@pytest.mark.parametrize("seed", range(2))
def test_the_divergence_is_that_of_the_quantised_distribution(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    linear = (rng.poisson(4, 300) * (rng.random(300) < 0.5)).astype(np.float64)
    linear[199] = seed  # Once empty, where the rest is clipped into.
    kept = linear[:size]
    clipped = kept.copy()
    clipped[-1] += linear[size:].sum()
    quantised = np.zeros(size)
    for level in range(128):
        inside = [i for i in range(size) if i * 128 // size == level and kept[i] > 0]
        quantised[inside] = kept[inside].mean() if inside else 0
    p, q = clipped / clipped.sum(), quantised / quantised.sum()
    assert _divergence(linear, size) == pytest.approx(special.rel_entr(p, q).sum(), rel=1e-12)


def test_entropy_clips_few_of_an_image_s_values() -> None:
    """256 values, all else between them empty: mass behind an empty bin is never given away."""
    grey = np.random.default_rng(0).normal(0.4, 0.2, 300_000).clip(0, 1)
    values = ((np.round(grey * 255) / 255 - 0.45) / 0.225).astype(np.float32)
    found = choose_clip(_count(values), ClipMethod.ENTROPY)
    assert np.mean(np.abs(values) > found.clip) < 0.01


def test_entropy_does_not_clip_below_nearly_all_values() -> None:
    """What a gate gives lies in a narrow band: all of it in one bin diverges from nothing."""
    band = np.random.default_rng(0).normal(0.6, 0.05, 30_000).clip(0.5, 0.8)
    values = np.append(band, np.full(3, 0.165)).astype(np.float32)
    found = choose_clip(_count(values), ClipMethod.ENTROPY)
    assert np.mean(values > found.clip) < 0.011


def test_a_floor_does_not_hide_what_lies_above_it_from_entropy() -> None:
    """What HardSwish reads: a third of the values at -3, and as if they were not there."""
    above = np.random.default_rng(0).laplace(0, 1.5, 200_000).astype(np.float32)
    above = above[above > 0]
    alone = choose_clip(_count(above), ClipMethod.ENTROPY).clip
    histogram = _count(above, np.full(above.size // 2, -7, np.float32), floor=-3.0)
    assert choose_clip(histogram, ClipMethod.ENTROPY).clip == alone > 4


@pytest.mark.parametrize("draw", ["laplace", "normal", "uniform"])
def test_mse_is_the_clip_that_real_rounding_has_the_least_error_at(draw: str) -> None:
    rng = np.random.default_rng(1)
    values = getattr(rng, draw)(size=100_000).astype(np.float32)

    def error(clip: float) -> float:
        step = clip / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        return float(np.square(rounded - values, dtype=np.float64).mean())

    found = choose_clip(_count(values))
    best = min(error(clip) for clip in np.linspace(0.3, 1, 71) * found.abs_max)
    assert error(found.clip) <= 1.01 * best


@pytest.mark.parametrize("method", list(ClipMethod))
def test_both_ends_of_the_bytes_and_what_they_clip(method: ClipMethod) -> None:
    draws = np.random.default_rng(6).standard_t(3, 80_000)
    values = np.where(draws > 0, 3 * draws, 0.8 * draws).astype(np.float32)
    found = choose_clip(_count(values), method, 99.0)
    grid = found.bytes
    whole = np.rint(values / grid.scale) + grid.zero_point
    clipped = float(np.mean((whole < 0) | (whole > 255)))
    assert grid.clipped_share == pytest.approx(clipped, abs=1e-4)
    assert (clipped > 0) == (method is not ClipMethod.MIN_MAX)
    if method is not ClipMethod.MSE:  # Which chooses both ends for themselves.
        ends = -min(found.clip, -values.min()), min(found.clip, values.max())
        assert (grid.low, grid.high) == pytest.approx(ends, abs=0.51 * grid.scale)


def test_what_rounds_to_an_end_of_the_bytes_is_not_clipped() -> None:
    values = np.random.default_rng(7).uniform(-2, 4, 80_000).astype(np.float32)
    grid = choose_clip(_count(values), ClipMethod.PERCENTILE, 70.0).bytes
    whole = np.rint(values / grid.scale) + grid.zero_point
    clipped = float(np.mean((whole < 0) | (whole > 255)))
    assert grid.clipped_share == pytest.approx(clipped, abs=4e-4)  # Half a step is 1e-3 here.


@pytest.mark.parametrize("floor", [-9.0, -3.0, -0.5, -0.4937, -1e-30, 0.0, 0.4937, 9.0])
def test_raised_is_what_the_raised_values_give(floor: float) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(2**18 + 9).astype(np.float32)
    values[rng.random(values.size) < 0.1] = 0
    found, plain = _count(values, floor=floor), _count(np.maximum(values, np.float32(floor)))
    raised = found.raised()
    np.testing.assert_array_equal(raised.signed, plain.signed)
    assert (raised.peaks, raised.num_zeros) == (plain.peaks, plain.num_zeros)
    np.testing.assert_array_equal(found.signed, _count(values).signed)  # Which stays as it was.
    assert found.peaks == (values.max(), -values.min())
    assert found.num_zeros == np.count_nonzero(values == 0)


def test_one_outlier_does_not_decide_the_range() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(200_000)).astype(np.float32)
    values[0] = 100.0
    found = choose_clip(_count(values))
    assert 3 < found.clip < 75
