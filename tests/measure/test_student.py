"""Quantiles of Student's t against SciPy."""

from __future__ import annotations

import pytest
from scipy import stats

from segdeploy.measure.student import t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 7, 19, 20, 101])
@pytest.mark.parametrize("probability", [1e-4, 0.2, 0.5, 0.8, 0.99, 0.9975])
def test_quantiles_are_those_of_scipy(probability: float, degrees: int) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(
    ("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0), (float("nan"), 2)]
)
def test_what_has_no_quantile_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, degrees)
