"""A checkpoint with 19 classes for benchmarks at 1024x2048: LRASPP trained on drawn scenes.

    .venv/bin/python -m benchmarks.synthetic19 [--epochs 5]

The classes of `synthetic` (background and four shapes), each split by the band of the image that a
pixel lies in: 4 + 4 + 4 + 4 + 3 = 19. Scenes are drawn at 256x512 into a `folder` data set below
runs/, which git ignores; training continues where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.task import IGNORE
from segdeploy.data.synthetic import CLASSES, draw_scene

RUN = Path("runs/synthetic19")
DATA = f"folder:{RUN / 'data'}"
CHECKPOINT = RUN / "checkpoint"
NAMES = tuple(f"{name}_{band}" for name in CLASSES for band in range(4))[:19]
COUNTS = {"train": 320, "val": 48}


def split_bands(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the label map (H, W) of 19 classes from one of 5; ignored pixels stay."""
    band = (np.arange(label.shape[0]) * 4 // label.shape[0])[:, None]
    split = np.minimum(label.astype(np.int64) * 4 + band, 18)
    return np.where(label == IGNORE, IGNORE, split).astype(np.uint8)


def draw(split: str, index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    """Return (image, label) of a scene; the same for the same arguments."""
    rng = np.random.default_rng((19, sorted(COUNTS).index(split), index))
    image, label = draw_scene(rng, size)
    return image, split_bands(label)


def write_data() -> None:
    """Draw the data set, once."""
    for split, count in COUNTS.items():
        for kind in ("images", "labels"):
            (RUN / "data" / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            target = RUN / "data" / "labels" / split / f"{index:04}.png"
            if target.exists():
                continue
            image, label = draw(split, index, (256, 512))
            Image.fromarray(image).save(RUN / "data" / "images" / split / f"{index:04}.png")
            Image.fromarray(label).save(target)
    (RUN / "data" / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def main() -> None:
    from segdeploy.train import TrainConfig, train

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    write_data()
    config = TrainConfig(
        model="lraspp_mobilenet_v3_large", data=DATA, out=str(RUN), epochs=options.epochs,
        augment="none", warmup_steps=40, norm_momentum=0.1, amp="bf16", val_every=4, workers=0,
    )  # fmt: skip
    train(config, resume=(RUN / "last").exists())


if __name__ == "__main__":
    main()
