"""When a measurement is too noisy to trust: said beside the numbers, never hidden in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# A share of the cores: on an idle machine the load average stays below it.
BUSY_LOAD = 0.25
# Median latencies of repeated runs on an idle 2-core machine vary by 2-6 %.
NOISY_VARIATION = 0.15


def robust_variation(samples: Sequence[float]) -> float | None:
    """Return the spread relative to the median: 1.4826 x MAD / median, >= 0 (0.1 = 10 %).

    The median absolute deviation is used, so that one interrupted call does not decide; the factor
    makes it equal to the standard deviation for normal samples. None for fewer than 5 samples.
    """
    if len(samples) < 5:
        return None
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    if median <= 0:
        return None
    return 1.4826 * float(np.median(np.abs(values - median))) / median


def load_warnings(load_average: Sequence[float] | None, governor: str | None) -> list[str]:
    """Return what makes the machine unfit for measuring before anything has run."""
    warnings = []
    cores = os.cpu_count() or 1
    if load_average and load_average[0] > BUSY_LOAD * cores:
        warnings.append(
            f"The machine was busy before the run: load average {load_average[0]:.2f} "
            f"on {cores} cores. Trust ratios of one run, not milliseconds."
        )
    if governor and governor not in {"performance", "schedutil"}:
        warnings.append(f"The CPU frequency governor is '{governor}', not 'performance'.")
    return warnings


def busy_seconds() -> float | None:
    """Return the CPU time in seconds that all processes have used since boot, or None."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        user, nice, system, _idle, _wait, irq, softirq, *_ = (int(field) for field in line[1:])
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def others_warnings(others_cores: float | None) -> list[str]:
    """Return what other processes did during the run, if it was much; `others_cores` in cores.

    A thread pool that spins while it waits loses far more than its share then: eager PyTorch with
    2 threads beside one busy process on 2 cores was measured 150 times slower.
    """
    if others_cores is None or others_cores < BUSY_LOAD * (os.cpu_count() or 1):
        return []
    share = f"{others_cores:.1f} of {os.cpu_count()} cores"
    return [f"Others kept {share} busy during the run: wait for them, or give fewer --threads."]


def sample_warnings(samples: Sequence[float]) -> list[str]:
    """Return what makes these samples hard to trust."""
    variation = robust_variation(samples)
    if variation is None:
        return [f"Only {len(samples)} samples: give more --seconds."] if len(samples) < 5 else []
    if variation > NOISY_VARIATION:
        return [f"Noisy: the samples vary by {variation:.0%} around their median."]
    return []
