"""What the machine did during a run: throttling, time taken by the host, other processes, clocks.

Read before and after; the difference is evidence beside the samples. What the system does not show
(in a container, on another system) is None, never "nothing happened".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from segdeploy.measure.environment import frequency_mhz, query_gpus
from segdeploy.measure.noise import busy_seconds

_CORES = Path("/sys/devices/system/cpu")
_ZONES = Path("/sys/class/thermal")
_STAT = Path("/proc/stat")
_STEAL = 8  # Field of the first line of /proc/stat: user nice system idle iowait irq softirq steal.
_MUCH_STEAL = 0.02
_GPU_QUERY = "clocks.sm,clocks.max.sm,temperature.gpu,clocks_throttle_reasons.active"
_GPU_IDLE = 0x1  # Reasons that are no trouble: nothing to do, clocks set by an application.
_GPU_SETTING = 0x2


def read_state() -> dict[str, Any]:
    """Return counters and clocks now; `state_change` makes sense of two of them."""
    return {
        "at_s": monotonic(),
        "busy_s": busy_seconds(),
        "steal_s": steal_seconds(),
        "throttle_count": throttle_count(),
        "temperature_c": _temperature_c(),
        "frequency_mhz": frequency_mhz(),
        "gpu_clocks": gpu_clocks(),
    }


def state_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what happened between two states: shares in [0, 1] of all cores, counts, clocks."""
    seconds = max(0.001, after["at_s"] - before["at_s"])
    stolen = _difference(before["steal_s"], after["steal_s"])
    return {
        "seconds": seconds,
        "busy_s": _difference(before["busy_s"], after["busy_s"]),
        "steal_share": None if stolen is None else stolen / seconds / (os.cpu_count() or 1),
        "num_throttled": _difference(before["throttle_count"], after["throttle_count"]),
        "temperature_c": [before["temperature_c"], after["temperature_c"]],
        "frequency_mhz": [before["frequency_mhz"], after["frequency_mhz"]],
        "gpu_clocks": after["gpu_clocks"],
    }


def state_warnings(change: Mapping[str, Any]) -> list[str]:
    """Return what a change says against the samples taken meanwhile."""
    warnings = []
    if change["num_throttled"]:
        warnings.append(
            f"The CPU was throttled {change['num_throttled']:.0f} times during the run: cool it, "
            "or lower its load."
        )
    if (change["steal_share"] or 0.0) > _MUCH_STEAL:
        warnings.append(
            f"The host took {change['steal_share']:.0%} of the cores' time from this virtual "
            "machine during the run."
        )
    warnings += [
        f"GPU {index} ran below its clock: throttle reasons {gpu['throttle_reasons']:#x}."
        for index, gpu in enumerate(change["gpu_clocks"])
        if (gpu["throttle_reasons"] or 0) & ~(_GPU_IDLE | _GPU_SETTING)
    ]
    return warnings


def steal_seconds() -> float | None:
    """Return the time in seconds that the hypervisor took from all cores since boot, or None."""
    try:
        ticks = int(_STAT.read_text(encoding="ascii").splitlines()[0].split()[_STEAL])
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def throttle_count() -> float | None:
    """Return how often the cores were throttled since boot (x86 on Linux), or None."""
    found = [_read(f) for f in _CORES.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [count for count in found if count is not None]
    return sum(known) if known else None


def _temperature_c() -> float | None:
    """Return the temperature of the hottest zone, or None."""
    found = [_read(zone) for zone in _ZONES.glob("thermal_zone[0-9]*/temp")]
    known = [value / 1000 for value in found if value is not None]
    return max(known) if known else None


def gpu_clocks() -> list[dict[str, float | int | None]]:
    """Return clock, largest clock, temperature and throttle reasons of each NVIDIA GPU."""
    return [parse_clocks(line) for line in query_gpus(_GPU_QUERY) if line.count(",") == 3]


def parse_clocks(line: str) -> dict[str, float | int | None]:
    """Return one line of nvidia-smi's answer by name; what it does not know is None."""
    clock, largest, temperature, reasons = (field.strip() for field in line.split(","))
    return {
        "sm_mhz": _number(clock),
        "max_sm_mhz": _number(largest),
        "temperature_c": _number(temperature),
        "throttle_reasons": int(reasons, 16) if reasons.lower().startswith("0x") else None,
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _read(path: Path) -> float | None:
    try:
        return _number(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
