"""RUN/val: what the model makes of the same few validation images, epoch after epoch.

`epoch_0012.png` (numbered as in log.jsonl) holds image, label, prediction and difference of each.
The newest ten are kept, and that of the best epoch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.files import write_bytes, write_errors
from segdeploy.data import Dataset
from segdeploy.data.pictures import Labels, Picture, comparison
from segdeploy.metrics import label_names

_KEPT = 10
_LONGEST = 240  # Pixels of a panel: four samples of CamVid are 1 MB as PNG.
_PAPER = 255


def spread(num: int, count: int) -> list[int]:
    """Return at most `count` indices of `num` samples, evenly from the first to the last."""
    return sorted(set(np.linspace(0, num - 1, min(num, count)).round().astype(int).tolist()))


def draw_samples(
    data: Dataset, indices: Sequence[int], predict: Callable[[NDArray[np.uint8]], Labels]
) -> Picture:
    """Return the comparisons of some samples below each other, uint8 (H, W, 3)."""
    names = label_names(data.task, tuple(data.classes))
    parts = []
    for index in indices:
        sample = data[index]
        found = predict(sample.image)
        parts.append(
            comparison(sample.image, sample.label, found, len(names), names, longest=_LONGEST)
        )
    size = sum(part.shape[0] for part in parts), max(part.shape[1] for part in parts)
    sheet, top = np.full((*size, 3), _PAPER, np.uint8), 0
    for part in parts:
        sheet[top : top + part.shape[0], : part.shape[1]] = part
        top += part.shape[0]
    return sheet


def picture_path(run: Path, epoch: int) -> Path:
    """Return RUN/val/epoch_NNNN.png."""
    return run / "val" / f"epoch_{epoch:04d}.png"


def save_picture(run: Path, epoch: int, picture: Picture) -> None:
    """Write the picture of an epoch.

    Raises:
        ArtifactError: If it cannot be written.
    """
    path = picture_path(run, epoch)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def prune_pictures(run: Path, best: int | None) -> None:
    """Remove all but the newest pictures and that of the epoch `best`."""
    found = sorted((run / "val").glob("epoch_*.png"))
    for path in found[:-_KEPT]:
        if best is None or path != picture_path(run, best):
            path.unlink(missing_ok=True)
