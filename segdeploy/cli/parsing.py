"""Reading the small languages of flags: sizes, pairs, lists."""

from __future__ import annotations

import re

from segdeploy.core.errors import ConfigError


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (H, W) of `HxW`; None and `dynamic` give None.

    Raises:
        ConfigError: If it is not HxW with positive numbers.
    """
    if text is None or text == "dynamic":
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise ConfigError(f"'{text}' is not a size.", hint="Write HEIGHTxWIDTH, e.g. 360x480.")
    return int(match[1]), int(match[2])


def parse_pair(text: str | None) -> tuple[float, float] | None:
    """Return (low, high) of `LOW,HIGH`; None gives None.

    Raises:
        ConfigError: If it is not two numbers.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"'{text}' is not a pair.", hint="Write LOW,HIGH, e.g. 0.5,2.") from error
    return low, high
