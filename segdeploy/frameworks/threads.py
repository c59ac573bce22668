"""How many threads a runtime may use; most runtimes do not read OMP_NUM_THREADS themselves."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLES = ("SEGDEPLOY_NUM_THREADS", "OMP_NUM_THREADS")
_CGROUP = Path("/sys/fs/cgroup")


def num_threads() -> int | None:
    """Return the number that the environment asks for, ours first; None leaves it to the runtime.

    `bench` and `serve` set the variables of their child processes.
    """
    for variable in _VARIABLES:
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return None


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, cut by the cgroup's quota."""
    cores = len(affinity() or ()) or os.cpu_count() or 1
    limit = cpu_limit_cores()
    return max(1, min(cores, round(limit))) if limit else cores


def affinity() -> list[int] | None:
    """Return the cores this process may run on, or None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))


def cpu_limit_cores(cgroup: Path = _CGROUP) -> float | None:
    """Return the cgroup's CPU quota in cores (1.5 = one and a half), or None if unlimited."""
    found = _numbers(cgroup / "cpu.max")
    if len(found) != 2:
        old = cgroup / "cpu"
        found = _numbers(old / "cpu.cfs_quota_us") + _numbers(old / "cpu.cfs_period_us")
    quota, period = found if len(found) == 2 else (None, None)
    return quota / period if quota and period and quota > 0 else None


def _numbers(path: Path) -> list[float | None]:
    """Return the numbers in a file of the system; a word ("max") is None."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
    return [float(word) if word.lstrip("-").isdigit() else None for word in words]
