"""What training left in a run: lines per epoch and per step, pictures of validation samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segdeploy.report.documents import LogLine, read_lines
from segdeploy.report.pictures import Picture, read_picture

EPOCH_VALUES = ("loss", "lr", "mean_iou", "pixel_accuracy", "images_s", "seconds")
STEP_VALUES = ("loss", "grad_norm")
_MOST_POINTS = 1000
_WINDOW_SHARE = 50  # The smoothed line averages over a fiftieth of the steps.
_PICTURE = re.compile(r"epoch_(\d+)\.png")

Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Training:
    """Lines of `log.jsonl` and `steps.jsonl`, and pictures of the same samples at some epochs."""

    epochs: list[LogLine]
    steps: list[LogLine]
    samples: list[Picture]

    @property
    def best(self) -> LogLine | None:
        """The first epoch with the highest validation mIoU."""
        return _best(self.epochs)


def read_training(run: Path, problems: list[str]) -> Training:
    """Read what there is of the logs and pictures of a run folder."""
    epochs = read_lines(run / "log.jsonl", "epoch", EPOCH_VALUES, problems)
    steps = read_lines(run / "steps.jsonl", "step", STEP_VALUES, problems)
    return Training(epochs, steps, _read_samples(run / "val", epochs, problems))


def _best(epochs: Sequence[LogLine]) -> LogLine | None:
    scored = [line for line in epochs if line.values.get("mean_iou") is not None]
    return max(scored, key=lambda line: line.values["mean_iou"] or 0.0, default=None)


def _read_samples(folder: Path, epochs: Sequence[LogLine], problems: list[str]) -> list[Picture]:
    """Return the pictures of the first, the middle, the best and the last epoch that has one."""
    found = {
        int(match[1]): path
        for path in sorted(folder.glob("epoch_*.png"))
        if (match := _PICTURE.fullmatch(path.name))
    }
    places, best = sorted(found), _best(epochs)
    if not places:
        return []
    chosen = {places[0], places[len(places) // 2], places[-1]}
    chosen |= {int(best.place)} & found.keys() if best else set()
    scores = {line.place: line.values.get("mean_iou") for line in epochs}
    pictures: list[Picture] = []
    for place in sorted(chosen):
        said, score = f"epoch {place}", scores.get(place)
        said += f", mIoU {score:.3f}" if score is not None else ""
        said += " (best)" if best and place == best.place else ""
        if url := read_picture(found[place], f"val/{found[place].name}", problems):
            pictures.append(Picture("", said, url))
    return pictures


def curve(lines: Sequence[LogLine], name: str) -> Points:
    """Return (place, value) of one number of a log."""
    return [(line.place, line.values.get(name)) for line in lines]


def smoothed(points: Points) -> tuple[Points, Points]:
    """Return the points and their centred moving average, each thinned to at most 1000 means.

    The average at the ends is over the part of the window that there is.
    """
    known = np.array([(x, y) for x, y in points if y is not None], dtype=np.float64)
    if not len(known):
        return [], []
    half = len(known) // (2 * _WINDOW_SHARE)
    sums = np.concatenate([[0.0], np.cumsum(known[:, 1])])
    index = np.arange(len(known))
    start, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(known))
    means = np.stack([known[:, 0], (sums[end] - sums[start]) / (end - start)], axis=1)
    return _thinned(known), _thinned(means)


def _thinned(points: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Points:
    parts = np.array_split(points, min(_MOST_POINTS, len(points)))
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in parts)]
