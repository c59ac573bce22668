"""Which images calibrate: those in which every class is seen, the rare ones first."""

from __future__ import annotations

import numpy as np

from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.sample import Sample
from segdeploy.export.calibration import BY_COVERAGE, open_calibration
from segdeploy.export.coverage import choose_by_coverage, count_classes, cover_classes, spread


def test_a_rare_class_is_seen_before_more_of_the_usual() -> None:
    pixels = np.zeros((20, 3), np.int64)
    pixels[:, 0] = 1000
    pixels[7, 2], pixels[13, 1] = 4, 10
    assert set(cover_classes(pixels, 2)) == {7, 13}


def test_the_greedy_choice_is_that_of_a_slow_loop() -> None:
    pixels = np.random.default_rng(0).integers(0, 50, (15, 4)) ** 2
    shares = pixels / pixels.sum(axis=0)
    chosen: list[int] = []
    for _ in range(6):
        gains = {
            i: sum(float(np.sqrt(shares[[*chosen, i], k].sum())) for k in range(4))
            for i in range(15)
            if i not in chosen
        }
        chosen.append(max(gains, key=lambda i: (gains[i], -i)))
    assert list(cover_classes(pixels, 6)) == chosen


def test_every_class_of_the_candidates_is_covered() -> None:
    dataset = open_dataset("synthetic:64x96", "train")
    chosen = choose_by_coverage(dataset, 4)
    assert len(chosen) == 4
    seen = {k for i in chosen for k in np.flatnonzero(count_classes(dataset, i))}
    candidates = spread(len(dataset), 16)
    assert seen == {k for i in candidates for k in np.flatnonzero(count_classes(dataset, i))}
    assert choose_by_coverage(dataset, 4) == chosen


def test_ignored_pixels_count_for_nothing() -> None:
    class Ignored:
        name, task, classes = "d/train", Task.MULTICLASS, ("a", "b")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Sample:
            label = np.full((4, 5), 255, np.uint8)
            label[0, :index] = 1
            return Sample(str(index), np.zeros((4, 5, 3), np.uint8), label)

    dataset = Ignored()
    assert [count_classes(dataset, i).tolist() for i in range(3)] == [[0, 0], [0, 1], [0, 2]]
    assert choose_by_coverage(dataset, 1) == (2,)


def test_a_binary_and_a_multilabel_set_are_covered() -> None:
    for name in ("synthetic_binary", "synthetic_multilabel"):
        chosen = open_calibration(f"{name}:64x96", 5)
        assert chosen.chosen_by == BY_COVERAGE
        assert len(chosen.indices) == 5
