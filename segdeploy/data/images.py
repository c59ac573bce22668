"""Reading images and label masks from disk, in every mode that a user's file can have.

An image becomes uint8 RGB: grey is repeated, palettes are looked up, CMYK is converted, alpha is
dropped (not blended: training sets with alpha mean the colours they store), EXIF rotation is
applied. A label keeps its stored numbers: a palette PNG is read by index. What cannot be read
right is a DataError that names the file, never a silently wrong picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from segdeploy.core.errors import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_TIFF_BITS_PER_SAMPLE = 258
_ON_ITS_SIDE = {5, 6, 7, 8}  # EXIF orientations that exchange width and height.
_HALF = 128
_LOSSY = {"JPEG", "MPO"}
_LABEL_MODES = {"P", "L", "1", "I", "I;16", "I;16B", "I;16L"}


def read_image(path: Path, *, exif: str = "apply", page: int = 0) -> NDArray[np.uint8]:
    """Return a file, of several pages this one, as uint8 RGB (H, W, 3).

    Raises:
        DataError: If the file is missing, empty, truncated, no image, or deeper than 8 bits.
    """
    with _opened(path, page) as picture:
        return _as_rgb(picture, path, exif)


def read_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of the image that `read_image` returns, from the head of the file alone.

    Raises:
        DataError: If the file is missing, empty or no image.
    """
    with _opened(path, decode=False) as picture:
        width, height = picture.size
        # A TIFF is opened turned. To look at the end of a PNG, Pillow would decode all of it.
        is_plain = picture.format == "PNG" and "exif" not in picture.info
        if is_plain or picture.format == "TIFF":
            return height, width
        turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return (width, height) if turn in _ON_ITS_SIDE else (height, width)


def _as_rgb(picture: Image.Image, path: Path, exif: str) -> NDArray[np.uint8]:
    if picture.mode in _DEEP_MODES or _stored_bits(picture, path) > 8:
        raise DataError(
            f"{path} has more than 8 bits per channel (mode {picture.mode}).",
            hint="Convert it to 8 bits; how to map the range is yours to decide.",
        )
    if exif == "apply":
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in {"P", "PA"}:  # A palette may hold alpha; RGBA first keeps its colours.
        picture = picture.convert("RGBA")
    if picture.mode in {"RGBA", "LA", "La", "RGBa"}:
        alpha_free = "L" if picture.mode in {"LA", "La"} else "RGB"
        picture = _drop_alpha(picture, alpha_free)
    return np.array(picture.convert("RGB"))


def _stored_bits(picture: Image.Image, path: Path) -> int:
    """Bits per channel in the file; Pillow itself makes 8 of 16-bit colour and of 4-bit grey."""
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # The bit depth in the IHDR chunk.
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2", {})
        return int(max(np.atleast_1d(tags.get(_TIFF_BITS_PER_SAMPLE, 8))))
    return 8


def _drop_alpha(picture: Image.Image, mode: str) -> Image.Image:
    bands = picture.split()
    return bands[0] if mode == "L" else Image.merge("RGB", bands[:3])


def read_label(path: Path) -> NDArray[np.unsignedinteger[Any]]:
    """Return a label mask (H, W) as stored: uint8, or uint16 for 16-bit files.

    Raises:
        DataError: If the file is missing, damaged, lossy (JPEG), or a colour picture.
    """
    with _opened(path) as picture:
        return _as_ids(picture, path)


def _as_ids(picture: Image.Image, path: Path) -> NDArray[np.unsignedinteger[Any]]:
    if picture.format in _LOSSY or picture.info.get("compression") == "jpeg":
        raise DataError(
            f"{path} is a JPEG: its compression changes class ids.",
            hint="Store masks as PNG, from the original annotation.",
        )
    if picture.mode not in _LABEL_MODES:
        raise DataError(
            f"{path} is a colour picture (mode {picture.mode}), not a mask of class indices.",
            hint="Store one channel whose values are class ids, 255 where nothing is labelled.",
        )
    label = np.array(picture)
    bits = _stored_bits(picture, path)
    if picture.mode == "L" and bits in {2, 4}:  # Pillow stretches these to 0..255: undo it.
        label //= 255 // (2**bits - 1)
    if label.dtype in {np.dtype(np.bool_), np.dtype(np.uint8)}:
        return label.astype(np.uint8)
    if label.min(initial=0) < 0 or label.max(initial=0) > 65535:
        raise DataError(f"{path} holds label values outside 0..65535.")
    return label.astype(np.uint16)


def read_bright(path: Path, page: int = 0) -> NDArray[np.uint8]:
    """Return 1 where a mask (H, W) is at least half bright, else 0; any mode of picture.

    Raises:
        DataError: If the file is missing, damaged, or deeper than 8 bits.
    """
    with _opened(path, page) as picture:
        brightness = Image.fromarray(_as_rgb(picture, path, "ignore")).convert("L")
        return (np.asarray(brightness) >= _HALF).astype(np.uint8)


@contextmanager
def _opened(path: Path, page: int = 0, *, decode: bool = True) -> Iterator[Image.Image]:
    """The edge to Pillow, whose readers raise nearly anything on damaged files.

    Yields the picture, decoded if asked for (of an animation or stack one page), and closes the
    file, which Pillow would keep open for further pages, and of a truncated picture.
    """
    try:
        _check_not_empty(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Odd metadata does not matter here.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.seek(page)
                if decode:
                    picture.load()
                yield picture
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is too large: {error}", hint="Cut it into tiles.") from error
    except Exception as error:
        raise DataError(
            f"{path} cannot be read: {error or type(error).__name__}.",
            hint="The file is damaged or of an unusual kind; restore, convert or remove it.",
        ) from error


def _check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", hint="Restore or remove the file.")


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error
    return sorted(
        p for p in inside
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    )  # fmt: skip
