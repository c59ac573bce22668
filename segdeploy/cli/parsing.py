"""Reading the small languages of flags: sizes, pairs, lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.core.errors import ConfigError

if TYPE_CHECKING:
    from segdeploy.backends.sliding import SlidingWindow
    from segdeploy.backends.tta import TtaSpec
    from segdeploy.core.contract import SizeBounds
    from segdeploy.core.preprocess import PreprocessSpec

TTA_HELP = "Average over views: flip, scales, or both, e.g. flip,0.75,1.0,1.25."
WINDOW_HELP = "Run by windows of HxW."
THRESHOLD_HELP = "Probability above which a binary or multilabel model says yes."
OVERLAP_HELP = "Shared part of neighbouring windows; 0.5 if not given."


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
    from segdeploy.core.contract import SizeBounds

    found = [parse_size(part) for part in text.split("..")]
    sizes = [size for size in found if size is not None]
    if len(sizes) not in {2, 3} or len(sizes) < len(found):
        raise ConfigError(
            f"'{text}' is no range of sizes.",
            hint="Write LEAST..LARGEST or LEAST..USUAL..LARGEST, e.g. 256x256..1024x1024.",
        )
    return SizeBounds(sizes[0], sizes[-2] if len(sizes) == 3 else sizes[-1], sizes[-1])


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


def parse_views(text: str | None) -> TtaSpec | None:
    """Return the test-time augmentation `flip,SCALE,...`; None gives None.

    Raises:
        ConfigError: If it is none.
    """
    from segdeploy.backends.tta import TtaSpec

    return None if text is None else TtaSpec.parse(text)


def parse_window(size: str | None, overlap: float | None) -> SlidingWindow | None:
    """Return the sliding window of `HxW` and an overlap; without a size, None.

    Raises:
        ConfigError: If one is no such thing, or an overlap is given alone.
    """
    from segdeploy.backends.sliding import SlidingWindow

    found = parse_size(size)
    if found is not None:
        return SlidingWindow(found) if overlap is None else SlidingWindow(found, overlap)
    if size is not None or overlap is not None:
        raise ConfigError("--overlap needs --sliding-window HxW, e.g. 320x320.")
    return None


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
        mean=IMAGENET_MEAN if mean is None else parse_triple(mean),
        std=IMAGENET_STD if std is None else parse_triple(std),
    )


def parse_triple(text: str) -> tuple[float, float, float]:
    """Return the numbers of `R,G,B`.

    Raises:
        ConfigError: If it is not three numbers.
    """
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is not three numbers.", hint="Write R,G,B, e.g. 0.485,0.456,0.406."
        ) from error
    return red, green, blue
