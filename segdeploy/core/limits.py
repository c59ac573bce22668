"""What a candidate may cost beyond its baseline, metric by metric: the limits of a gate.

Written in `segdeploy.toml` as `latency = "5%"`, on the command line as `--max-slowdown 5%`. A
metric without a limit is not measured.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from segdeploy.core.errors import ConfigError

DEFAULT_SLOWDOWN = 0.05
OTHER_SETTINGS = ("baseline", "budget", "streams", "allow_different_machine")
"""What else stands in `[gate]` of segdeploy.toml."""
_LARGEST = 10.0  # Eleven times as slow.


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """The largest allowed growth per metric as a share (0.05 = 5 %); None leaves a metric out.

    `throughput` is the largest allowed loss, as baseline / candidate - 1. `mean_iou` is the largest
    allowed drop in points (0.5 = half a point of mIoU in percent).
    """

    latency: float | None = DEFAULT_SLOWDOWN
    throughput: float | None = None
    memory: float | None = None
    size: float | None = None
    cold_start: float | None = None
    mean_iou: float | None = None

    def __post_init__(self) -> None:
        limits = {each.name: getattr(self, each.name) for each in fields(self)}
        if all(value is None for value in limits.values()):
            raise ConfigError(
                "A gate without any limit decides nothing.", hint='Set one, e.g. latency = "5%".'
            )
        for name, value in limits.items():
            largest = 100.0 if name == "mean_iou" else _LARGEST
            least = value == 0 and name in {"size", "mean_iou"}  # Others vary by themselves.
            if value is not None and not (least or 0 < value <= largest):
                raise ConfigError(
                    f"The limit of {name} must be above 0 and at most {largest:g}, found {value}.",
                    hint='Give a share with its sign, e.g. "5%".',
                )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> GateLimits:
        """Read the limits of a table, which may hold OTHER_SETTINGS too.

        Raises:
            ConfigError: If one cannot be read, or a key is unknown: a gate that dropped a limit
                whose name was misspelt would pass everything.
        """
        names = [each.name for each in fields(cls)]
        for key in table:
            if key not in names and key not in OTHER_SETTINGS:
                near = difflib.get_close_matches(str(key), names, 1)
                raise ConfigError(
                    f"A gate has no limit '{key}'.",
                    hint=f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}.",
                )
        found = {key: value for key, value in table.items() if key in names}
        return cls(
            **{
                key: parse_points(value) if key == "mean_iou" else parse_share(value, key)
                for key, value in found.items()
            }
        )


def parse_share(value: object, name: str = "limit") -> float | None:
    """Return `5%` or 0.05 as a share; `off` and False as None.

    Raises:
        ConfigError: If it is none of these. 5 is none: five times slower is written `500%`.
    """
    found = _parse_number(value, name)
    if found is not None and found >= 1 and "%" not in str(value):
        raise ConfigError(
            f"{name} = {value} would be {100 * found:g} %.",
            hint=f'Write "{found:g}%" or, if it is meant, "{100 * found:g}%".',
        )
    return found


def _parse_number(value: object, name: str) -> float | None:
    if value is False or value == "off":
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", str(value), re.ASCII)
    if match is None:
        raise ConfigError(f"{name} = {value!r} is no share.", hint='Write "5%", 0.05 or "off".')
    return float(match[1]) / (100 if match[2] else 1)


def parse_points(value: object) -> float | None:
    """Return points of mIoU: 0.5 and `0.5` are half a point; `off` and False are None."""
    if isinstance(value, str) and value.strip().endswith("%"):
        raise ConfigError(
            f"mean_iou = {value!r} is a share.", hint="Write points of mIoU, e.g. 0.5."
        )
    return _parse_number(value, "mean_iou")


def parse_seconds(value: object, name: str = "budget") -> float:
    """Return `60s`, `2m`, `1h` or a plain number in seconds.

    Raises:
        ConfigError: If it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)\s*", str(value), re.ASCII)
    factors = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
    seconds = float(match[1]) * factors[match[2]] if match else 0.0
    if not 0 < seconds <= 86_400:
        raise ConfigError(f"{name} = {value!r} is no time.", hint="Write e.g. 60s, 2m or 1h.")
    return seconds
