"""Multilabel counts, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from segdeploy.core.errors import DataError
from segdeploy.core.scores import class_dice, class_iou
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.metrics.multilabel import MultilabelCounts


@pytest.mark.parametrize("logit", [0.0, 0.7])
def test_counts_and_scores_equal_torchmetrics(logit: float) -> None:
    prepare_torchvision()
    import torch
    from torchmetrics.functional import classification as reference

    rng = np.random.default_rng(0)
    label, logits = rng.random((2, 5, 6, 7)) < 0.4, rng.normal(size=(2, 5, 6, 7))
    counts = MultilabelCounts(5, logit)
    counts.update(label[:1], logits[:1])
    counts.update(label[1:], logits[1:])
    truth, guess = torch.from_numpy(label).int(), torch.from_numpy(logits > logit).int()
    table = reference.multilabel_confusion_matrix(guess, truth, 5).numpy()
    np.testing.assert_array_equal(counts.table, table)
    iou = reference.multilabel_jaccard_index(guess, truth, 5, average="none").numpy()
    dice = reference.multilabel_f1_score(guess, truth, 5, average="none").numpy()
    np.testing.assert_allclose(class_iou(counts.counts), iou, rtol=1e-6)
    np.testing.assert_allclose(class_dice(counts.counts), dice, rtol=1e-6)


def test_each_class_has_its_own_threshold() -> None:
    counts = MultilabelCounts(2, [0.0, 2.0])
    counts.update(np.ones((1, 2, 1, 1), np.bool_), np.ones((1, 2, 1, 1)))
    assert counts.table[:, 1].tolist() == [[0, 1], [1, 0]]


def test_pixels_that_are_not_valid_count_nowhere() -> None:
    rng = np.random.default_rng(1)
    label, logits = rng.random((1, 2, 3, 4)) < 0.5, rng.normal(size=(1, 2, 3, 4))
    whole, part = MultilabelCounts(2), MultilabelCounts(2)
    valid = np.zeros((1, 3, 4), np.bool_)
    valid[:, :2] = True
    whole.update(label, logits, valid)
    part.update(label[:, :, :2], logits[:, :, :2])
    np.testing.assert_array_equal(whole.table, part.table)
    assert part.table.sum() == 2 * 8


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(N, 2, H, W\)"):
        MultilabelCounts(2).update(np.zeros((1, 3, 2, 2), np.bool_), np.zeros((1, 3, 2, 2)))
    with pytest.raises(DataError, match="logits"):
        MultilabelCounts(2).update(np.zeros((1, 2, 2, 2), np.bool_), np.zeros((1, 2, 2, 3)))
