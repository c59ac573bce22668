"""Reading the small languages of flags: sizes, pairs, lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.core.errors import ConfigError
from segdeploy.core.sizes import parse_size, parse_sizes

if TYPE_CHECKING:
    from segdeploy.backends.sliding import SlidingWindow
    from segdeploy.backends.tta import TtaSpec
    from segdeploy.core.preprocess import PreprocessSpec

__all__ = [
    "OVERLAP_HELP", "THRESHOLD_HELP", "TTA_HELP", "WINDOW_HELP", "parse_names",
    "parse_normalization", "parse_numbers", "parse_pair", "parse_size", "parse_sizes",
    "parse_triple", "parse_views", "parse_window",
]  # fmt: skip
TTA_HELP = "Average over views: flip, scales, or both, e.g. flip,0.75,1.0,1.25."
WINDOW_HELP = "Run by windows of HxW."
THRESHOLD_HELP = "Probability above which a binary or multilabel model says yes."
OVERLAP_HELP = "Shared part of neighbouring windows; 0.5 if not given."


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


def parse_numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of `N` or `N,N,...`.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"'{text}' are no numbers.", hint="Write e.g. 1 or 1,4,8.") from error


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
