"""Every kind of image file is read right or refused by name, never read wrong."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.errors import DataError
from segdeploy.data.images import list_images, read_image, read_label

MODES = {
    "cmyk_pytorch.jpg", "gray_pytorch.jpg", "gray_pytorch.png", "grayalpha_pytorch.png",
    "palette_pytorch.png", "rgb_pytorch.jpg", "rgb_pytorch.png", "rgbalpha_pytorch.png",
}  # fmt: skip


def _picture(mode: str = "RGB", size: tuple[int, int] = (13, 7)) -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: `rows` holds packed samples without the filter bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's advice to us.
@pytest.mark.parametrize("name", sorted(MODES))
def test_every_mode_of_the_shared_pictures_equals_pillows_rgb(shared_data: Path, name: str) -> None:
    path = shared_data / "image_modes" / name
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    found = read_image(path)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)


def test_the_shared_pictures_are_the_ones_listed(shared_data: Path) -> None:
    assert {p.name for p in list_images(shared_data / "image_modes")} == MODES


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"), ("RGB", "jpg"), ("RGB", "bmp"), ("RGB", "tif"), ("RGB", "webp"),
        ("L", "png"), ("L", "tif"), ("1", "png"), ("1", "tif"), ("P", "png"), ("P", "bmp"),
        ("P", "gif"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif"), ("YCbCr", "jpg"),
    ],
)  # fmt: skip
def test_modes_without_alpha_equal_pillows_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    _picture(mode).save(path)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif")])
def test_alpha_is_dropped_not_blended(tmp_path: Path, mode: str, suffix: str) -> None:
    picture = _picture(mode)
    picture.putalpha(Image.new("L", picture.size, 0))  # Blending would give one colour.
    picture.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(_picture("L" if mode == "LA" else "RGB").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


def test_a_palette_with_transparency_keeps_the_colours_of_its_palette(tmp_path: Path) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(indices).convert("P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "one.png", transparency=3)
    picture.save(tmp_path / "many.png", transparency=bytes(range(0, 240, 20)))
    for name in ("one.png", "many.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), colours[indices])


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read_image(tmp_path / "a.gif")
    assert found.shape == (6, 8, 3)
    assert (found == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_told_otherwise(
    tmp_path: Path, orientation: int
) -> None:
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255  # A mark in the stored top left corner.
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(stored).save(path, exif=exif)
    # EXIF 2.32, tag 0x0112: what is the 0th row and 0th column of the picture as seen.
    seen = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
        5: stored.swapaxes(0, 1), 6: stored.swapaxes(0, 1)[:, ::-1],
        7: stored.swapaxes(0, 1)[::-1, ::-1], 8: stored.swapaxes(0, 1)[::-1],
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(read_image(path), seen)
    np.testing.assert_array_equal(read_image(path, exif="ignore"), stored)


def test_a_jpeg_is_turned_by_its_exif_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(size=(30, 20)).save(tmp_path / "a.JPEG", exif=exif)
    assert read_image(tmp_path / "a.JPEG").shape == (30, 20, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_a_picture_of_one_pixel_is_a_picture(tmp_path: Path, mode: str) -> None:
    _picture(mode, (1, 1)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").shape == (1, 1, 3)


def _deep_file(folder: Path, kind: str) -> Path:
    path = folder / f"deep.{'tif' if 'tif' in kind else 'png'}"
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    if kind in {"grey png", "grey tif"}:
        Image.fromarray(grey).save(path)
    elif kind == "float tif":
        Image.fromarray(grey.astype(np.float32)).save(path)
    elif kind == "int tif":
        Image.fromarray(grey.astype(np.int32)).save(path)
    else:
        colour, channels = {"rgb png": (2, 3), "rgba png": (6, 4), "grey alpha png": (4, 2)}[kind]
        rows = np.random.default_rng(0).integers(0, 65536, (3, 4, channels)).astype(">u2")
        path.write_bytes(_png(4, 3, 16, colour, rows.tobytes()))
    return path


@pytest.mark.parametrize(
    "kind",
    ["grey png", "rgb png", "rgba png", "grey alpha png", "grey tif", "float tif", "int tif"],
)
def test_more_than_8_bits_per_channel_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = _deep_file(tmp_path, kind)
    with pytest.raises(DataError, match=r"deep\.\w+ has more than 8 bits") as caught:
        read_image(path)
    assert "8 bits" in caught.value.hint


def test_a_16_bit_rgb_tiff_is_refused(tmp_path: Path) -> None:
    """Written by hand, since Pillow cannot: little-endian, one strip."""
    width, height = 4, 3
    pixels = np.random.default_rng(0).integers(0, 65536, (height, width, 3)).astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    content = b"II*\0" + struct.pack("<I", 14 + len(pixels)) + struct.pack("<3H", 16, 16, 16)
    content += pixels + struct.pack("<H", len(entries))
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"this is a text, not a picture\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "a.png"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a.png"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a.png"),
        (b"II*\0" + b"\xff" * 40, "a.png"),
        (bytes(1000), "a.png"),
    ],
)
def test_what_is_no_picture_is_a_data_error_that_names_the_file(
    tmp_path: Path, read: Any, content: bytes, said: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png") as caught:
        read(tmp_path / "a.png")
    assert said in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_missing_file_a_folder_and_a_broken_link_are_data_errors(
    tmp_path: Path, read: Any
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    for name in ("lost.png", "folder.png", "link.png", "x" * 300 + ".png"):
        with pytest.raises(DataError, match=name[:9]):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp", "gif"])
def test_a_file_cut_anywhere_is_refused_or_still_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    _picture(size=(64, 48)).save(path)
    whole, content = read_image(path), path.read_bytes()
    refused = 0
    lengths = {1, 8, 30, *range(50, len(content), max(1, len(content) // 25)), len(content) - 1}
    for length in sorted(n for n in lengths if n < len(content)):
        path.write_bytes(content[:length])
        try:
            found = read_image(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017  both endings are allowed
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused >= len(lengths) - 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp", "gif"])
def test_random_damage_never_ends_in_another_exception(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture("P" if suffix == "gif" else "RGB", (24, 16)).save(path, exif=exif)
    content = path.read_bytes()
    dice = random.Random(0)  # noqa: S311  damage, not secrets
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(dice.choice((1, 1, 2, 8))):
            damaged[dice.randrange(min(len(damaged), 400))] = dice.randrange(256)
        path.write_bytes(damaged)
        for read in (read_image, read_label):
            try:
                found: NDArray[Any] = read(path)
            except DataError:
                continue
            assert found.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(60_000, 60_000, 1, 0, bytes(60_000)))
    with pytest.raises(DataError, match="too large") as caught:
        read_image(tmp_path / "a.png")
    assert "tiles" in caught.value.hint


def test_labels_are_read_by_index_never_by_colour(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [11, 254, 255]], np.uint8)
    grey = Image.fromarray(indices)
    grey.save(tmp_path / "grey.png")
    coloured = grey.copy().convert("P")
    coloured.putdata(indices.ravel().tolist())
    coloured.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    coloured.save(tmp_path / "palette.png")
    coloured.save(tmp_path / "palette.bmp")
    grey.save(tmp_path / "grey.tif")
    for name in ("grey.png", "palette.png", "palette.bmp", "grey.tif"):
        found = read_label(tmp_path / name)
        assert found.dtype == np.uint8, name
        np.testing.assert_array_equal(found, indices, err_msg=name)


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_labels_packed_into_few_bits_keep_their_ids(
    tmp_path: Path, depth: int, colour: int
) -> None:
    rng = np.random.default_rng(depth)
    ids = rng.integers(0, 2**depth, (5, 8), dtype=np.uint8)
    bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - depth :].reshape(5, -1)
    content = _png(8, 5, depth, 0, np.packbits(bits, axis=1).tobytes())
    (tmp_path / "a.png").write_bytes(content)
    if colour == 3:
        picture = Image.fromarray(ids).convert("P")
        picture.putdata(ids.ravel().tolist())
        picture.save(tmp_path / "a.png", bits=depth)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_labels_keep_their_ids(tmp_path: Path, suffix: str) -> None:
    ids = np.array([[0, 1, 255], [256, 1000, 65535]], np.uint16)
    Image.fromarray(ids).save(tmp_path / f"a.{suffix}")
    found = read_label(tmp_path / f"a.{suffix}")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(("value", "ok"), [(-1, False), (65536, False), (65535, True), (0, True)])
def test_32_bit_labels_must_fit(tmp_path: Path, value: int, ok: bool) -> None:
    Image.fromarray(np.full((2, 3), value, np.int32)).save(tmp_path / "a.tif")
    if ok:
        assert (read_label(tmp_path / "a.tif") == value).all()
    else:
        with pytest.raises(DataError, match=r"a\.tif holds label values outside"):
            read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_coloured_label_is_refused(tmp_path: Path, mode: str) -> None:
    _picture(mode).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"colour picture .mode {mode}") as caught:
        read_label(tmp_path / "a.png")
    assert "class ids" in caught.value.hint


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "TIFF", "compression": "jpeg"}])
def test_a_jpeg_label_is_refused_because_it_is_lossy(
    tmp_path: Path, options: dict[str, str]
) -> None:
    _picture("L").save(tmp_path / "a.png", **options)
    with pytest.raises(DataError, match="JPEG"):
        read_label(tmp_path / "a.png")


def test_listing_takes_images_of_any_case_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.Jpg", "c.tiff", ".hidden.png", "notes.txt", "Thumbs.db", "._a.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.Jpg", "b.PNG", "c.tiff"]
    for path in (tmp_path / "lost", tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="no folder"):
            list_images(path)


def test_upper_case_suffixes_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    _picture().save(buffer, format="PNG")
    (tmp_path / "A.PNG").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "A.PNG"), np.asarray(_picture()))
