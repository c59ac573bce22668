"""Finding a data set on disk: where its root is, and which files a split has.

A wrong or partial layout is the usual mistake with published data sets, so that every message says
what was looked for and what was found there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segdeploy.core.errors import DataError
from segdeploy.data.images import IMAGE_SUFFIXES
from segdeploy.data.sample import NoSplitError

_MOST_SHOWN = 8
Pairs = list[tuple[Path, Path]]


def find_layout(
    name: str,
    root: str | None,
    layouts: Mapping[str, Sequence[str]],
    below: Sequence[str] = (),
) -> tuple[str, Path]:
    """Return which layout is there, and the folder that holds it.

    Args:
        name: Of the data set, as the user wrote it.
        root: What the user gave.
        layouts: Words for a layout -> what it must hold, as paths relative to its folder.
        below: Where else the folder may be, relative to the root.

    Raises:
        DataError: If no root was given, or none of the layouts is there, whole.
    """
    if not root:
        raise DataError(
            f"{name} needs a root.", hint=f"Write {name}:PATH, e.g. {name}:data/{name}."
        )
    places = [Path(root), *(Path(root) / part for part in below)]
    for place in places:
        for layout, needed in layouts.items():
            if place.is_dir() and all((place / part).exists() for part in needed):
                return layout, place
    raise DataError(
        f"{root} is not {' or '.join(layouts)}: {_what_lacks(places, layouts)}.\n"
        f"Found: {describe_folder(Path(root))}.",
        hint=_advice(name, layouts, below),
    )


def _what_lacks(places: Sequence[Path], layouts: Mapping[str, Sequence[str]]) -> str:
    """Say what the place that comes nearest to a layout lacks."""
    tries = [(place, needed) for place in places for needed in layouts.values()]
    lacks = [[str(p / n) for n in needed if not (p / n).exists()] for p, needed in tries]
    near = min(range(len(tries)), key=lambda i: len(lacks[i]) - len(tries[i][1]))
    return f"there is no {', no '.join(lacks[near] or [str(places[0])])}"


def _advice(name: str, layouts: Mapping[str, Sequence[str]], below: Sequence[str]) -> str:
    wholes = [f"{layout} ({', '.join(n)})" for layout, n in layouts.items() if n]
    if not wholes:
        return f"Give the folder that holds the splits of {name}."
    return f"Expected {' or '.join(wholes)} in the root{''.join(f' or {b}/' for b in below)}."


def describe_folder(folder: Path) -> str:
    """Return the first few names in a folder, or that it is missing or empty."""
    if not folder.is_dir():
        return f"no folder {folder}"
    try:
        names = sorted(p.name + "/" * p.is_dir() for p in folder.glob("[!.]*"))
    except OSError as error:
        return f"{folder}, which cannot be listed ({error.strerror})"
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{', '.join(names[:_MOST_SHOWN])}{more} in {folder}" if names else f"{folder} is empty"


def find_split(top: Path, split: str, images: str, labels: str) -> tuple[Path, Path]:
    """Return the two folders of a split.

    Raises:
        NoSplitError: If both are missing.
        DataError: If one of them is missing.
    """
    folders = top / images, top / labels
    lost = [folder for folder in folders if not folder.is_dir()]
    if len(lost) == 2 or not split:
        raise NoSplitError(
            f"{top} has no split '{split}': there is no {lost[0] if lost else images}.",
            hint=f"Looked for {images}/ and {labels}/. Found: {describe_folder(top)}.",
        )
    if lost:
        raise DataError(
            f"The split '{split}' of {top} is not whole: there is no folder {lost[0]}.",
            hint=f"A split has images in {images}/ and masks in {labels}/.",
        )
    return folders


def read_split_list(folder: Path, split: str) -> list[str]:
    """Return the names that `folder/split.txt` lists, without folders and suffixes of images.

    Blank lines and comments (`#`) are skipped; of several words in a line the first is the name.

    Raises:
        NoSplitError: If there is no such list; says which there are.
        DataError: If the list is empty or no text.
    """
    file = folder / f"{split}.txt"
    if not split or not file.is_file():
        lists = sorted(p.stem for p in folder.glob("[!.]*.txt"))
        raise NoSplitError(
            f"There is no list {file}.",
            hint=f"Lists found in {folder}: {', '.join(lists[:_MOST_SHOWN]) or 'none'}.",
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable text: {error}.") from error
    words = [line.split() for line in lines]
    names = [_name(found[0]) for found in words if found and not found[0].startswith("#")]
    if not names:
        raise DataError(f"{file} lists no image.", hint="Unpack the data set again.")
    return names


def _name(word: str) -> str:
    path = Path(word)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def pair_listed(names: Sequence[str], images: tuple[Path, str], labels: tuple[Path, str]) -> Pairs:
    """Return the files of each name, given folder and suffix of images and of labels.

    Raises:
        NoSplitError: If not one of them has a label: the split is not labelled.
        DataError: If some are missing; counts them and names one.
    """
    pairs = [(images[0] / (n + images[1]), labels[0] / (n + labels[1])) for n in names]
    return check_files(pairs)


def check_files(pairs: Pairs) -> Pairs:
    """Return the pairs if all files are there; else as `pair_listed`."""
    if not pairs:
        raise DataError("The split is empty.", hint="Unpack the data set again, whole.")
    lost_labels = [label for _, label in pairs if not label.is_file()]
    if len(lost_labels) == len(pairs):
        raise NoSplitError(
            f"None of the {len(pairs)} images has a label, e.g. there is no {lost_labels[0]}.",
            hint="This split is not labelled, or its labels were not unpacked.",
        )
    lost_images = [image for image, _ in pairs if not image.is_file()]
    for what, lost in (("images", lost_images), ("labels", lost_labels)):
        if lost:
            raise DataError(
                f"{len(lost)} of {len(pairs)} {what} are missing, e.g. {lost[0]}.",
                hint="Unpack the data set again, whole.",
            )
    return pairs
