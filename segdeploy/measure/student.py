"""Quantiles of Student's t distribution, without SciPy: `gate` runs where only NumPy is."""

from __future__ import annotations

import math


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t with a whole number of degrees of freedom.

    By bisection of the distribution function's closed form; exact to 1e-9 of the argument.

    Args:
        probability: In (0, 1).
        degrees: At least 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"no quantile for p = {probability}, {degrees} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while _distribution(high, degrees) < probability:
        low, high = high, 2 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        if _distribution(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _distribution(value: float, degrees: int) -> float:
    """Return P(T <= value) for value >= 0 (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return 0.5 + angle / math.pi
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if odd:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2
