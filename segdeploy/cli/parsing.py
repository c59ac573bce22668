"""Reading the small languages of flags: sizes, pairs, lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.core.errors import ConfigError

if TYPE_CHECKING:
    from segdeploy.core.preprocess import PreprocessSpec


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


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a file, one a line, or of `NAME,NAME,...`; None gives None.

    Raises:
        ConfigError: If the file is no text.
    """
    if text is None:
        return None
    file = Path(text)
    try:
        found = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not readable text: {error}.") from error
    names = text.split(",") if found is None else found
    return tuple(name.strip() for name in names if name.strip())


def parse_normalization(mean: str | None, std: str | None) -> PreprocessSpec | None:
    """Return the preprocessing with another mean and std, each `R,G,B`; without both, None.

    Raises:
        ConfigError: If one is not three numbers.
    """
    from segdeploy.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec

    if mean is None and std is None:
        return None
    return PreprocessSpec(
        mean=IMAGENET_MEAN if mean is None else _parse_triple(mean),
        std=IMAGENET_STD if std is None else _parse_triple(std),
    )


def _parse_triple(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is not three numbers.", hint="Write R,G,B, e.g. 0.485,0.456,0.406."
        ) from error
    return red, green, blue
