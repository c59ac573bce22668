"""The manifest's words on labels, followed one by one in plain loops, against what segdeploy does.

A program in another language knows no more than these words; not even what NaN does in a sort.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from segdeploy.core.contract import Upsampling
from segdeploy.core.task import Task
from segdeploy.upsampling.kernel import upsample_labels
from segdeploy.upsampling.reference import reference_labels

F = np.float32


def _place(pixel: int, num_samples: int, num_pixels: int, corners: bool) -> tuple[int, int, F]:
    w, size, x = F(num_samples), F(num_pixels), F(pixel)
    if corners:
        s = x * ((w - F(1)) / (size - F(1))) if num_pixels > 1 else F(0)
    else:
        s = max(F(0), (w / size) * (x + F(0.5)) - F(0.5))
    low = min(int(s), num_samples - 1)
    return low, min(low + 1, num_samples - 1), min(s - F(low), F(1))


def _combined(a: F, b: F, t: F) -> F:
    return F(F(a * F(F(1) - t)) + F(b * t))


def _largest(values: list[F]) -> int:
    """A NaN counts as the largest, the first of several wins; ties go to the lowest class."""
    for index, value in enumerate(values):
        if value != value:  # noqa: PLR0124  that is what NaN is
            return index
    best = 0
    for index, value in enumerate(values):
        if value > values[best]:
            best = index
    return best


def labels_by_the_words(
    low: NDArray[np.float32], size: tuple[int, int], corners: bool
) -> NDArray[np.uint8]:
    classes, h, w = low.shape
    found = np.zeros(size, np.uint8)
    for y, x in itertools.product(range(size[0]), range(size[1])):
        y0, y1, ty = _place(y, h, size[0], corners)
        x0, x1, tx = _place(x, w, size[1], corners)
        logits = []
        for k in range(classes):
            upper = _combined(low[k, y0, x0], low[k, y0, x1], tx)
            lower = _combined(low[k, y1, x0], low[k, y1, x1], tx)
            logits.append(_combined(upper, lower, ty))
        found[y, x] = _largest(logits) if classes > 1 else logits[0] > 0
    return found


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_who_follows_the_words_gets_the_labels_nan_included(
    share: float, num_classes: int, corners: bool
) -> None:
    rng = np.random.default_rng(3)
    low: NDArray[np.float32] = rng.standard_normal((num_classes, 6, 7)).astype(F)
    low[:, 2:4, 1:3] = F(0.25)  # Ties.
    low[rng.random(low.shape) < share] = np.nan
    low[rng.random(low.shape) < share / 4] = np.inf
    task = Task.BINARY if num_classes == 1 else Task.MULTICLASS
    size = (23, 31)
    wanted = labels_by_the_words(low, size, corners)
    options: dict[str, Any] = {"align_corners": corners, "task": task}
    assert np.array_equal(reference_labels(low[None], size, **options)[0], wanted)
    num_labels = max(num_classes, 2)
    found = upsample_labels(low[None], size, num_labels=num_labels, **options)
    assert np.array_equal(found[0], wanted)


def test_the_rule_names_nan_and_how_two_samples_are_combined() -> None:
    rule = Upsampling(align_corners=False).rule
    assert "a NaN counts as the largest, and the first of several wins" in rule
    assert "whether the logit is above 0, which NaN is not" in rule
    assert "(a * (1 - t)) + (b * t)" in rule


def test_a_manifest_of_older_words_keeps_them() -> None:
    old = {"align_corners": True, "mode": "bilinear", "margin": 16.0, "rule": "older words"}
    read = msgspec.convert(old, Upsampling)
    assert read.rule == "older words"
    assert msgspec.to_builtins(read) == old
