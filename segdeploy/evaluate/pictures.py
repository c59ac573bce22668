"""Pictures of the worst and the best images, and their place in `samples/`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.backends.predictor import Predictor
from segdeploy.core.files import write_bytes, write_errors
from segdeploy.core.results import ImageScore
from segdeploy.data.pictures import comparison
from segdeploy.data.sample import Dataset
from segdeploy.metrics import label_names

_OURS = re.compile(r"(eval|worst|best)_\d\d_.*\.png")  # `eval_` is what older versions drew.


def draw_pictures(
    predictor: Predictor,
    dataset: Dataset,
    indices: Sequence[int],
    shown: Mapping[str, Sequence[ImageScore]],
) -> dict[str, bytes]:
    """Return image, label, prediction and difference as PNGs, `KIND_00_NAME.png` and so on.

    Args:
        predictor: The model.
        dataset: Where the images are.
        indices: Of the images that were evaluated.
        shown: Per kind ("worst", "best") the images, in the order of their numbers.
    """
    names = label_names(dataset.task, tuple(dataset.classes))
    pictures: dict[str, bytes] = {}
    for kind, images in shown.items():
        for number, image in enumerate(images):
            sample = dataset[indices[image.place]]
            labels = predictor.predict(sample.image).labels
            drawn = comparison(sample.image, sample.label, labels, len(names), names)
            stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(sample.name).stem)[:60]
            pictures[f"{kind}_{number:02d}_{stem}.png"] = _encode(drawn)
    return pictures


def _encode(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


@contextmanager
def replacing_pictures(folder: Path, pictures: Mapping[str, bytes]) -> Iterator[None]:
    """Write the pictures; old ones go when the block has succeeded, new ones if it has not."""
    is_new = not folder.exists()
    before = {path for path in folder.glob("*.png") if _OURS.fullmatch(path.name)}
    written: list[Path] = []
    try:
        with write_errors(folder):
            folder.mkdir(exist_ok=True)
        for name, content in pictures.items():
            write_bytes(folder / name, content)
            written.append(folder / name)
        yield
    except BaseException:
        with suppress(OSError):
            for path in set(written) - before:
                path.unlink()
            if is_new:
                folder.rmdir()
        raise
    with write_errors(folder):
        for old in before - set(written):
            old.unlink()
