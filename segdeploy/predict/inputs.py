"""Which pictures are meant, and what their results are called.

A folder means the image files directly in it; a pattern is expanded here as well, since quoted
patterns and other shells do not. A file that exists wins over a pattern of the same spelling
(`shot[1].png`). Every picture is taken once, in the order given.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segdeploy.core.errors import DataError
from segdeploy.data.images import IMAGE_SUFFIXES, list_images


def find_images(asked: Sequence[str | Path]) -> list[Path]:
    """Return the image files that files, folders and patterns mean, each once.

    Raises:
        DataError: If one of them means no image.
    """
    found: dict[Path, Path] = {}
    for item in asked:
        for path in _expand(item):
            found.setdefault(path.resolve(), path)
    if not found:
        raise DataError("There is no image to predict.", hint="Give files, folders or patterns.")
    return list(found.values())


def _expand(item: str | Path) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        matches = list_images(path)
        what = f"The folder {item} has no image directly in it"
    elif path.exists() or not glob.has_magic(str(item)):
        if not path.exists():
            raise DataError(f"There is no file or folder {item}.")
        return [path]
    else:
        # Path.glob takes no absolute pattern.
        names = sorted(glob.glob(str(item), recursive=True))  # noqa: PTH207
        matches = [
            p for p in map(Path, names) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        ]
        what = f"The pattern {item} matches no image"
    if not matches:
        raise DataError(f"{what}.", hint=f"Known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return matches


def name_results(images: Sequence[Path]) -> list[str]:
    """Return a distinct file stem for each image: `a`, or `a_jpg`, `a_jpg_2` where names collide.

    A stem never equals another's overlay (`a` beside `a_overlay`), whatever the letters' case.
    """
    stems = Counter(path.stem.lower() for path in images)
    names: list[str] = []
    taken: set[str] = set()
    for path in images:
        name = path.stem
        if stems[path.stem.lower()] > 1:
            name = f"{path.stem}_{path.suffix.removeprefix('.').lower()}"
        candidate, number = name, 1
        while not {candidate.lower(), f"{candidate.lower()}_overlay"}.isdisjoint(taken):
            number += 1
            candidate = f"{name}_{number}"
        taken |= {candidate.lower(), f"{candidate.lower()}_overlay"}
        names.append(candidate)
    return names


def check_targets(images: Sequence[Path], targets: Sequence[Path]) -> None:
    """Check that no result replaces a picture, or a file that lies beside the pictures.

    Data sets often hold `a.jpg` and its label `a.png` in one folder: a mask must never go there.

    Raises:
        DataError: If one would; nothing has been written then.
    """
    folders = {path.resolve().parent for path in images}
    for target in targets:
        if target.resolve().parent in folders and target.exists():
            raise DataError(
                f"{target} exists beside the pictures and would be replaced by a result.",
                hint="Give another folder to --out.",
            )
