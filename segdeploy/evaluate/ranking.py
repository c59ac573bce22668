"""The score of each single image, its place among all, and the file that holds them.

An image's mean IoU counts the classes that are labelled in this image. The score of the whole comes
from the summed counts and is no mean of these: a small object weighs as much as its pixels there,
and as much as a class here. Ties keep the order of the data set, so that any number of processes
ranks alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.results import ImageScore, known
from segdeploy.core.scores import ClassCounts, divide, mean_iou

_NUM_SHOWN = 6


def image_scores(records: NDArray[np.void]) -> list[ImageScore]:
    """Return the scores of the images of an evaluation, in its order."""
    counts = ClassCounts.stacked(records["classes"])
    right = divide(records["right"][:, 0], records["right"][:, 1])
    rows = zip(records["name"].tolist(), mean_iou(counts), right, strict=True)
    return [
        ImageScore(place, name.decode(errors="ignore"), known(iou), known(accuracy))
        for place, (name, iou, accuracy) in enumerate(rows)
    ]


def worst_and_best(
    images: Sequence[ImageScore], most: int = _NUM_SHOWN
) -> tuple[list[ImageScore], list[ImageScore]]:
    """Return the images of lowest mean IoU, lowest first, and of highest, highest first.

    At most `most` of each and none twice; an image without a labelled pixel has no place.
    """
    ranked = sorted(
        (image for image in images if image.mean_iou is not None),
        key=lambda image: (image.mean_iou, image.place),
    )
    num_worst, num_best = min(most, (len(ranked) + 1) // 2), min(most, len(ranked) // 2)
    return ranked[:num_worst], ranked[len(ranked) - num_best :][::-1]


def render_csv(images: Sequence[ImageScore]) -> bytes:
    """Return one line an image: name, mean IoU and pixel accuracy; an unknown score is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "mean_iou", "pixel_accuracy"))
    writer.writerows((image.name, image.mean_iou, image.pixel_accuracy) for image in images)
    return text.getvalue().encode(errors="replace")
