"""Seeded, structured scenes drawn on the fly: textured, overlapping objects with exact labels.

For demos and tests that must not depend on files. A scene has a textured background with a
brightness gradient, two to six overlapping objects and a thin void border (ignored). Class means
differ in shape and texture, colours vary, so that a model has to learn something. The scene of
(split, index) never changes: the random generator is seeded by both.

Spec: `synthetic`, `synthetic:HxW` or `synthetic:HxW:COUNT` (training images; validation has a
quarter). Default 96x128, 256 images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeploy.core.errors import DataError
from segdeploy.core.task import IGNORE, Task
from segdeploy.data.sample import Dataset, NoSplitError, Sample

CLASSES = ("background", "disc", "box", "triangle", "bar")
MULTILABEL_CLASSES = (*CLASSES[1:], "object")
_SPLITS = {"train": 1, "val": 2, "test": 3}
_BORDER = 2
_MIN_SIDE = 32
_MAX_PIXELS = 2**26  # Drawn in float64: 1.6 GB at 8192x8192.


@dataclass(frozen=True)
class SyntheticDataset:
    """One split. `size` is (H, W)."""

    split: str
    size: tuple[int, int]
    count: int
    task: Task = Task.MULTICLASS
    classes: tuple[str, ...] = CLASSES

    @property
    def name(self) -> str:
        """E.g. `synthetic/val`."""
        stem = "synthetic" if self.task is Task.MULTICLASS else f"synthetic_{self.task}"
        return f"{stem}/{self.split}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Draw scene `index`.

        Raises:
            IndexError: Beyond the end.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((_SPLITS[self.split], index))
        image, label = draw_scene(rng, self.size)
        return Sample(f"{self.split}_{index:05d}", image, _answer(label, self.task))


def _answer(label: NDArray[np.uint8], task: Task) -> NDArray[np.uint8]:
    """Return the label map (H, W) as a task asks for it."""
    if task is Task.MULTICLASS:
        return label
    is_object = (label > 0)[None]
    kinds = label == np.arange(1, len(CLASSES))[:, None, None]
    yes = is_object[0] if task is Task.BINARY else np.concatenate([kinds, is_object])
    return np.where(label == IGNORE, IGNORE, yes).astype(np.uint8)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return (image uint8 (H, W, 3), label uint8 (H, W)) of a random scene."""
    height, width = size
    canvas = _texture(rng, size, rng.uniform(40, 140, 3), contrast=12)
    label = np.zeros(size, np.uint8)
    for _ in range(rng.integers(2, 7)):
        kind = int(rng.integers(1, len(CLASSES)))
        mask = _shape_mask(rng, size, kind)
        # Each class leans towards one hue and has its own stripe period; both vary.
        colour = np.clip(_HUES[kind] + rng.normal(0, 25, 3), 0, 255)
        paint = _texture(rng, size, colour, contrast=18, period=3 + 2 * kind)
        canvas[mask] = paint[mask]
        label[mask] = kind
    light = np.linspace(rng.uniform(0.75, 1.0), rng.uniform(1.0, 1.2), width)
    noisy = canvas * light[None, :, None] + rng.normal(0, 6, (height, width, 3))
    label[:_BORDER], label[-_BORDER:] = IGNORE, IGNORE
    label[:, :_BORDER], label[:, -_BORDER:] = IGNORE, IGNORE
    return np.clip(noisy, 0, 255).astype(np.uint8), label


_HUES = np.array(
    [[90, 90, 90], [205, 80, 70], [70, 160, 215], [225, 200, 80], [110, 200, 110]], np.float64
)


def _texture(
    rng: np.random.Generator,
    size: tuple[int, int],
    colour: NDArray[np.float64],
    contrast: float,
    period: float = 17.0,
) -> NDArray[np.float64]:
    """A plane wave of random direction around one colour, (H, W, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    angle = rng.uniform(0, np.pi)
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period)
    painted: NDArray[np.float64] = colour + contrast * wave[..., None]
    return painted


def _shape_mask(rng: np.random.Generator, size: tuple[int, int], kind: int) -> NDArray[np.bool_]:
    height, width = size
    picture = Image.new("1", (width, height))
    draw = ImageDraw.Draw(picture)
    radius = rng.uniform(0.1, 0.25) * min(size)
    x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    turn = rng.uniform(0, 2 * np.pi)
    if kind == 1:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        aspect = (radius / 4, radius * 2) if kind == 4 else (radius, radius)
        draw.polygon(_corners(kind, aspect, turn, (x, y)), fill=1)
    return np.asarray(picture)


def _corners(
    kind: int, half: tuple[float, float], turn: float, centre: tuple[float, float]
) -> list[tuple[float, float]]:
    if kind == 3:
        angles = turn + 2 * np.pi * np.arange(3) / 3
        points = 1.3 * half[0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        points = (signs * np.array(half)) @ rotation
    return [(float(px + centre[0]), float(py + centre[1])) for px, py in points]


def open_synthetic(root: str | None, split: str) -> Dataset:
    """Open the five-class set; `root` is `HxW` or `HxW:COUNT`.

    Raises:
        DataError: If the split or the size is not understood.
    """
    size, count = _parse(root, split)
    return SyntheticDataset(split, size, count)


def open_synthetic_binary(root: str | None, split: str) -> Dataset:
    """Open the same scenes with one foreground class; else as `open_synthetic`."""
    size, count = _parse(root, split)
    return SyntheticDataset(split, size, count, Task.BINARY, ("object",))


def open_synthetic_multilabel(root: str | None, split: str) -> Dataset:
    """Open the same scenes with a mask of each kind of object, and one of all; else likewise."""
    size, count = _parse(root, split)
    return SyntheticDataset(split, size, count, Task.MULTILABEL, MULTILABEL_CLASSES)


def _parse(root: str | None, split: str) -> tuple[tuple[int, int], int]:
    if split not in _SPLITS:
        raise NoSplitError(f"synthetic has no split '{split}', only {', '.join(_SPLITS)}.")
    match = re.fullmatch(r"(\d+)x(\d+)(?::(\d+))?", root or "96x128")
    if match is None:
        raise DataError(f"'{root}' is not a size.", hint="Write synthetic:HxW or synthetic:HxW:N.")
    height, width, total = int(match[1]), int(match[2]), int(match[3] or 256)
    if height * width > _MAX_PIXELS:
        raise DataError(f"synthetic scenes end at {_MAX_PIXELS} pixels, found '{root}'.")
    if min(height, width) < _MIN_SIDE or total < 1:
        raise DataError(f"synthetic needs sides >= {_MIN_SIDE} and a count >= 1, found '{root}'.")
    return (height, width), total if split == "train" else max(1, total // 4)
