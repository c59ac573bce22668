"""Sample pictures that other stages left in `samples/`, as data that fits into the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB\x60\x82"
_MOST, _LARGEST_BYTES = 4, 4 * 2**20  # Per folder, so that a page stays mailable.


@dataclass(frozen=True)
class Picture:
    """A PNG: the file's name without suffix, and a data URL."""

    name: str
    url: str


def read_pictures(folder: Path, owner: str, problems: list[str]) -> tuple[Picture, ...]:
    """Return the first few pictures of a `samples` folder; what is no whole PNG is named."""
    pictures: list[Picture] = []
    for path in sorted(folder.glob("*.png")):
        if len(pictures) == _MOST:
            break
        where = f"{owner}/samples/{path.name}"
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                problems.append(f"{where} is too large for the report.")
                continue
            content = path.read_bytes()
        except OSError as error:
            problems.append(f"{where} cannot be read: {error.strerror}.")
            continue
        if not content.startswith(_SIGNATURE) or not content.endswith(_END):
            problems.append(f"{where} is not a whole PNG.")
            continue
        encoded = base64.b64encode(content).decode()
        pictures.append(Picture(path.stem, f"data:image/png;base64,{encoded}"))
    return tuple(pictures)
