"""What must be equal for two results to be compared: milliseconds of two machines are no ratio.

What a latency depends on and what stays the same between two runs on one machine. Load, frequency
and free memory change by the minute: they are warnings, no part of it. A value that nobody could
read is None and equal to None only. Of the runtimes, only those that both results know are
compared: that one artifact runs on another runtime is what is being measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLAIN = (
    "cpu", "cpu_flags", "num_cores", "affinity", "cpu_limit_cores", "governor", "machine",
    "threads", "device",
)  # fmt: skip
_OURS = "SEGDEPLOY_"  # Where things lie and how they are started, not how fast they are.
_SLOWS_NOTHING = "ORT_DISABLE_TELEMETRY"  # Set by the door to ONNX Runtime, if it was opened.
_THREADS = "_NUM_THREADS"  # The workers get theirs from `threads`.
_SHOWN = 100


def fingerprint(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal, of the environment of a bench or gate result."""
    runtime = environment.get("runtime") or {}
    variables = environment.get("variables") or {}
    return {
        **{name: environment.get(name) for name in _PLAIN},
        "os": os_family(environment.get("os")),
        "gpus": [gpu.get("name") for gpu in environment.get("gpus") or ()],
        "drivers": sorted({str(gpu.get("driver")) for gpu in environment.get("gpus") or ()}),
        "variables": {
            name: value
            for name, value in sorted(variables.items())
            if not name.startswith(_OURS) and not name.endswith(_THREADS) and name != _SLOWS_NOTHING
        },
        "runtimes": dict(sorted((runtime.get("versions") or {}).items())),
    }


def fingerprint_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return one line for each thing that differs between two environments; none if comparable.

    Args:
        first: The environment of one result.
        second: The environment of the other.
    """
    mine, theirs = fingerprint(first), fingerprint(second)
    both = set(mine["runtimes"]) & set(theirs["runtimes"])
    for each in (mine, theirs):
        each["runtimes"] = {name: each["runtimes"][name] for name in sorted(both)}
    return [
        f"{name}: {_show(mine[name])} against {_show(theirs[name])}"
        for name in mine
        if _plain(mine[name]) != _plain(theirs[name])
    ]


def os_family(text: str | None) -> str | None:
    """Return system and kernel series: `Linux-6.8.0-45-generic-...` is `Linux-6.8`."""
    found = re.match(r"[A-Za-z]+-\d+(\.\d+)?", text or "")
    return found.group() if found else text


def _plain(value: Any) -> Any:
    """Return lists for tuples: a result that was read back has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        text = " ".join(map(str, value)) or "none"
    elif isinstance(value, Mapping):
        text = " ".join(f"{name}={each}" for name, each in value.items()) or "none"
    else:
        text = "unknown" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
