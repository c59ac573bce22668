"""How a size is written, on the command line and in TOML: `360x480`, `dynamic`, a range."""

from __future__ import annotations

import re

from segdeploy.core.contract import SizeBounds
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


def parse_sizes(text: str) -> tuple[int, int] | SizeBounds | None:
    """Return (H, W) of `HxW`, bounds of `HxW..HxW` or `HxW..HxW..HxW`; `dynamic` gives None.

    Raises:
        ConfigError: If it is none of these, or the bounds are not in order.
    """
    if ".." not in text:
        return parse_size(text)
    found = [parse_size(part) for part in text.split("..")]
    sizes = [size for size in found if size is not None]
    if len(sizes) not in {2, 3} or len(sizes) < len(found):
        raise ConfigError(
            f"'{text}' is no range of sizes.",
            hint="Write LEAST..LARGEST or LEAST..USUAL..LARGEST, e.g. 256x256..1024x1024.",
        )
    return SizeBounds(sizes[0], sizes[-2] if len(sizes) == 3 else sizes[-1], sizes[-1])
