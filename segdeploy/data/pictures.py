"""Pictures of label maps: class colours, overlays, and the comparison that a report shows.

Pure NumPy and Pillow, so that `predict` and `evaluate` draw the same picture with and without a
framework. A class has the same colour in every picture of every run: colours depend on the class
index alone (and on whether there is a background, for two classes). The first twenty are chosen by
hand, the rest is drawn from the PASCAL VOC colour map, each time the one farthest from all before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segdeploy.core.preprocess import resize_labels
from segdeploy.core.task import IGNORE, ignore_value

Picture = NDArray[np.uint8]
Labels = NDArray[np.unsignedinteger[Any]]

_FIRST = (
    (86, 115, 154), (240, 80, 70), (60, 180, 75), (255, 200, 25), (145, 60, 190),
    (70, 210, 225), (245, 130, 48), (0, 105, 200), (240, 50, 200), (190, 230, 60),
    (0, 128, 128), (250, 170, 190), (170, 110, 40), (255, 250, 190), (128, 0, 30),
    (150, 255, 195), (128, 128, 0), (0, 0, 117), (215, 185, 255), (90, 60, 40),
)  # fmt: skip
_GREY = (150, 150, 150)
_BACKGROUND = (20, 24, 32)
_WRONG = (255, 45, 85)
_PAPER, _INK = (255, 255, 255), (34, 40, 49)
_GAP, _TITLE_HEIGHT, _FONT_SIZE = 8, 24, 14
_SMALLEST, _LARGEST = 200, 480  # Sides of a panel, in pixels, between which text and file fit.


def _voc_color(index: int) -> tuple[int, int, int]:
    """Spread the bits of an index over the high bits of red, green, blue (VOC devkit)."""
    channels = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return channels[0], channels[1], channels[2]


@cache
def _colors() -> Picture:
    """Return 256 distinct colours: 255 of classes, then the grey of ignored pixels."""
    candidates = np.array([_voc_color(index) for index in range(1, 256)], dtype=np.int64)
    chosen = np.array([*_FIRST, _GREY], dtype=np.int64)
    distance = ((candidates[:, None] - chosen[None]) ** 2).sum(-1).min(1)
    found = list(_FIRST)
    while len(found) < IGNORE:
        best = candidates[distance.argmax()]
        found.append((int(best[0]), int(best[1]), int(best[2])))
        distance = np.minimum(distance, ((candidates - best) ** 2).sum(-1))
    return np.array([*found, _GREY], dtype=np.uint8)


def palette(num_classes: int) -> Picture:
    """Return the colour (R, G, B) of each 8-bit label, (256, 3); row 255 (ignored) is grey.

    With one or two classes (a binary task), label 0 is a dark background.
    """
    table = _colors().copy()
    if num_classes <= 2:
        table[0] = _BACKGROUND
    return table


def color_labels(labels: Labels, num_classes: int) -> Picture:
    """Return the label map (H, W) in colours (H, W, 3); from 256 classes on, colours repeat."""
    wide = labels.astype(np.int64)
    index = np.where(wide == ignore_value(num_classes), IGNORE, wide % IGNORE)
    return palette(num_classes)[index]


def overlay(image: Picture, labels: Labels, num_classes: int, alpha: float = 0.5) -> Picture:
    """Return the image (H, W, 3) tinted by its label map (H, W).

    Args:
        image: uint8 RGB.
        labels: Label ids, ignored pixels allowed; of another size, it is sampled at the image's.
            Or masks (K, H, W) of a multilabel task: a pixel gets the mean of its classes' colours.
        num_classes: K.
        alpha: Share of the class colour, in [0, 1].
    """
    fitted = resize_labels(labels, (image.shape[0], image.shape[1]))
    if fitted.ndim == 3:
        return _tint(image, fitted == 1, alpha)
    colors = color_labels(fitted, num_classes).astype(np.float32)
    return np.rint(image * np.float32(1 - alpha) + colors * np.float32(alpha)).astype(np.uint8)


def _tint(image: Picture, masks: NDArray[np.bool_], alpha: float) -> Picture:
    """Return the image with the mean colour of the classes that a pixel has; none, none."""
    table = mask_palette().astype(np.float32)
    total, num = np.zeros(image.shape, np.float32), masks.sum(axis=0)[:, :, None]
    for k, mask in enumerate(masks):
        total[mask] += table[k % IGNORE]
    mixed = image * np.float32(1 - alpha) + total / np.maximum(num, 1) * np.float32(alpha)
    return np.where(num > 0, np.rint(mixed).astype(np.uint8), image)


def mask_palette() -> Picture:
    """Return the palette of a multilabel task, none of whose classes is a background."""
    return palette(IGNORE)


def comparison(
    image: Picture,
    label: Labels,
    prediction: Labels,
    num_classes: int,
    classes: Sequence[str] = (),
    *,
    longest: int = _LARGEST,
) -> Picture:
    """Return image, label, prediction and difference as one uint8 picture with titles.

    Ignored pixels are hatched in the label and the difference; wrong ones are red. Panels are
    shrunk (or enlarged) to sides that suit a report, `longest` pixels at most. With class names, a
    legend of those that occur is added. Label and prediction of a multilabel task are masks
    (K, H, W): a pixel is wrong where one of its classes is, and the share is of all decisions.
    """
    size = (image.shape[0], image.shape[1])
    label, prediction = resize_labels(label, size), resize_labels(prediction, size)
    ignored = label == ignore_value(num_classes)
    wrong = (label.astype(np.int64) != prediction) & ~ignored
    share = 100 * float(wrong.sum()) / max(1, int((~ignored).sum()))
    if label.ndim == 3:
        ignored, wrong = ignored.all(axis=0), wrong.any(axis=0)
    shown = _panel_size(size, longest)
    small = np.asarray(Image.fromarray(image).resize((shown[1], shown[0])))
    label, prediction = resize_labels(label, shown), resize_labels(prediction, shown)
    ignored, wrong = resize_labels(ignored, shown), resize_labels(wrong, shown)
    panels = {
        "image": small,
        "label": hatch(overlay(small, label, num_classes, 0.65), ignored),
        "prediction": overlay(small, prediction, num_classes, 0.65),
        f"difference: {share:.1f} % wrong": hatch(_difference(small, wrong), ignored),
    }
    sheet = _sheet(panels, shown)
    if label.ndim == 3:
        shows = (label == 1).any(axis=(1, 2)) | (prediction == 1).any(axis=(1, 2))
        present, num_classes = np.flatnonzero(shows), IGNORE  # The colours of `mask_palette`.
    else:
        present = np.union1d(label, prediction)
    names = {int(i): classes[int(i)] for i in present if int(i) < len(classes)}
    return with_legend(sheet, names, num_classes) if names else np.asarray(sheet)


def _panel_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return (H, W) with the longer side between the limits, its ratio kept."""
    longer = max(size)
    factor = min(max(longer, _SMALLEST), longest) / longer
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _difference(image: Picture, wrong: NDArray[np.bool_]) -> Picture:
    """Return the image in pale grey with wrong pixels in red."""
    grey = (image.mean(axis=2) * 0.6 + 90).astype(np.uint8)
    drawn = np.repeat(grey[:, :, None], 3, axis=2)
    drawn[wrong] = _WRONG
    return drawn


def hatch(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """Return the picture with grey diagonal stripes on some pixels."""
    rows, columns = np.indices(where.shape)
    stripes = np.where((rows + columns) // 4 % 2, 120, 190).astype(np.uint8)
    return np.where(where[:, :, None], stripes[:, :, None], picture)


def _sheet(panels: dict[str, Picture], size: tuple[int, int]) -> Image.Image:
    """Return the four panels under their titles: in two rows, or in one row if they are tall."""
    columns = 4 if size[0] > 1.2 * size[1] else 2
    width, height = max(size[1], _SMALLEST) + _GAP, size[0] + _TITLE_HEIGHT
    sheet = Image.new(
        "RGB", (columns * width + _GAP, len(panels) // columns * height + _GAP), _PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for index, (title, panel) in enumerate(panels.items()):
        x, y = _GAP + index % columns * width, index // columns * height
        draw.text((x, y + _TITLE_HEIGHT / 2), title, fill=_INK, font=font, anchor="lm")
        sheet.paste(Image.fromarray(panel), (x, y + _TITLE_HEIGHT))
    return sheet


def with_legend(sheet: Image.Image, names: dict[int, str], num_classes: int) -> Picture:
    """Return the sheet with a line of colour swatches and class names below it."""
    font, colors = ImageFont.load_default(_FONT_SIZE), palette(num_classes)
    line, x, places = 0, _GAP, []
    for index, name in names.items():
        shown = name if len(name) <= 24 else f"{name[:23]}…"
        width = 30 + int(font.getlength(shown))
        if x > _GAP and x + width > sheet.width:
            line, x = line + 1, _GAP
        places.append((x, sheet.height + line * _TITLE_HEIGHT, shown, colors[index % IGNORE]))
        x += width
    drawn = Image.new("RGB", (sheet.width, sheet.height + (line + 1) * _TITLE_HEIGHT), _PAPER)
    drawn.paste(sheet)
    draw = ImageDraw.Draw(drawn)
    for left, top, shown, color in places:
        draw.rectangle((left, top + 4, left + 13, top + 17), fill=tuple(color.tolist()))
        draw.text((left + 19, top + 11), shown, fill=_INK, font=font, anchor="lm")
    return np.asarray(drawn)
