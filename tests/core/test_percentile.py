"""Intervals of percentiles against a slow sum of binomial probabilities, SciPy, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from segdeploy.core.percentile import interval_ranks, percentile_interval
from segdeploy.core.results import BenchResult


def slow_ranks(n: int, p: float) -> tuple[int, int] | None:
    """Return the innermost ranks of which each side misses at most 2.5 %, rank by rank."""

    def below(r: int) -> float:
        """Return P(fewer than r samples lie below the quantile)."""
        return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(r))

    lows = [r for r in range(1, n + 1) if below(r) <= 0.025]
    highs = [r for r in range(1, n + 1) if below(r) >= 0.975]
    return (max(lows), min(highs)) if lows and highs else None


@pytest.mark.parametrize("n", [1, 5, 6, 20, 37, 60, 120, 400])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_ranks_are_those_of_a_slow_loop(n: int, p: float) -> None:
    assert interval_ranks(n, p) == slow_ranks(n, p)


@pytest.mark.parametrize("n", [1_000, 30_000])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_many_samples_agree_with_scipy(n: int, p: float) -> None:
    found = interval_ranks(n, p)
    assert found is not None
    low, high = found
    assert binom.cdf(low - 1, n, p) <= 0.025 < binom.cdf(low, n, p)
    assert binom.cdf(high - 1, n, p) >= 0.975 > binom.cdf(high - 2, n, p)


@pytest.mark.parametrize(("n", "percent"), [(30, 50.0), (100, 90.0), (600, 99.0)])
def test_the_interval_holds_the_true_percentile_as_often_as_it_says(n: int, percent: float) -> None:
    rng = np.random.default_rng(7)
    true = math.exp(float(np.sqrt(2)) * _inverse_erf(2 * percent / 100 - 1))
    hits = 0
    for _ in range(2000):
        interval = percentile_interval(rng.lognormal(size=n).tolist(), percent)
        assert interval is not None
        hits += interval[0] <= true <= interval[1]
    assert hits / 2000 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def _inverse_erf(y: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(y))


def test_a_result_has_intervals_where_its_samples_give_them() -> None:
    result = BenchResult(
        target="t", path="p", samples_ms=[float(v) for v in range(1, 41)], batch_size=1,
        input_shape=(1,), peak_memory_mib=None, environment={},
    )  # fmt: skip
    assert result.latency_ci_ms["p50"] == (14.0, 27.0)
    assert result.latency_ci_ms["p99"] is None
    document = result.to_dict()
    assert document["latency_ci_ms"]["p50"] == [14.0, 27.0]
    assert document["latency_ci_ms"]["p99"] is None
