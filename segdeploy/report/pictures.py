"""Pictures that other stages left in a run, made small enough for one page.

The page holds them all: each is reduced to at most 256 KiB, the first target shows up to 16, every
other one up to 6, and training up to 4. Ten targets stay below 24 MB in the worst case, and at a
few MB in practice.
"""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_MOST_BYTES = 256 * 2**10
_LARGEST_PIXELS = 40_000_000
_SIDES = (980, 700, 400, 200)  # Longest sides that are tried, in pixels.
_QUALITY = 82
_TALLEST = 3  # A sheet of several samples may be so many times as high as it is wide.

KINDS = ("worst", "best", "")
ALL, FEW = {"worst": 6, "best": 6, "": 4}, dict.fromkeys(KINDS, 2)


@dataclass(frozen=True)
class Picture:
    """What it shows ("worst", "best" or ""), a line for people, and a data URL."""

    kind: str
    caption: str
    url: str


def read_pictures(
    folder: Path,
    owner: str,
    captions: Mapping[str, str],
    most: Mapping[str, int],
    problems: list[str],
) -> tuple[Picture, ...]:
    """Return the pictures of a `samples` folder; what is no whole PNG is named.

    Args:
        folder: May be absent.
        owner: Whose, as problems name it.
        captions: By the beginning of the file's name, `worst_00`; else its name is the caption.
        most: Pictures of each kind.
        problems: Is added to.
    """
    found: dict[str, list[Picture]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.glob("*.png")):
        kind = next(kind for kind in KINDS if path.stem.startswith(f"{kind}_" if kind else ""))
        if len(found[kind]) < most[kind]:
            url = read_picture(path, f"{owner}/samples/{path.name}", problems)
            caption = captions.get("_".join(path.stem.split("_")[:2]), path.stem)
            found[kind] += [Picture(kind, f"{owner}: {caption}", url)] if url else []
    return tuple(picture for kind in KINDS for picture in found[kind])


def read_picture(path: Path, where: str, problems: list[str]) -> str:
    """Return a PNG as a data URL of a smaller picture, empty (and named) if it is not whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as opened:
                if opened.width * opened.height > _LARGEST_PIXELS:
                    problems.append(f"{where} is too large for the report.")
                    return ""
                return _encode(opened.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problems.append(f"{where} is too large for the report.")
    except PermissionError as error:
        problems.append(f"{where} cannot be read: {error.strerror}.")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        problems.append(f"{where} is not a whole PNG.")
    return ""


def _encode(picture: Image.Image) -> str:
    content = b""
    for side in _SIDES:
        small = picture.copy()
        small.thumbnail((side, side * _TALLEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=_QUALITY)
        content = buffer.getvalue()
        if len(content) <= _MOST_BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
