"""Multilabel counts, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from segdeploy.core.errors import DataError
from segdeploy.core.scores import class_dice, class_iou, mean_iou
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.metrics.multilabel import MultilabelCounts


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_counts_and_scores_equal_torchmetrics(ignored: float) -> None:
    prepare_torchvision()
    import torch
    from torchmetrics.functional import classification as reference

    rng = np.random.default_rng(0)
    label = (rng.random((2, 5, 6, 7)) < 0.4).astype(np.uint8)
    label[rng.random(label.shape) < ignored] = 255
    guess = (rng.random((2, 5, 6, 7)) < 0.5).astype(np.uint8)
    parts = [MultilabelCounts(5), MultilabelCounts(5)]
    for counts, *maps in zip(parts, label, guess, strict=True):
        counts.update(*maps)
    total = (parts[0] + parts[1]).counts
    given = torch.from_numpy(guess).int(), torch.from_numpy(label).int(), 5
    table = reference.multilabel_confusion_matrix(*given, ignore_index=255).numpy()
    np.testing.assert_array_equal((parts[0] + parts[1]).matrix, table)
    dice = reference.multilabel_f1_score(*given, average="none", ignore_index=255).numpy()
    np.testing.assert_allclose(class_dice(total), dice, rtol=1e-6)
    iou = reference.multilabel_jaccard_index(*given, average="none", ignore_index=255).numpy()
    np.testing.assert_allclose(class_iou(total), iou, rtol=1e-6)
    mean = reference.multilabel_jaccard_index(*given, average="macro", ignore_index=255)
    assert float(mean_iou(total)) == pytest.approx(float(mean))


def test_masks_that_do_not_fit_are_refused_by_name() -> None:
    counts, masks = MultilabelCounts(2), np.zeros((2, 3, 4), np.uint8)
    for label, found in ((masks[:1], masks), (masks, masks[:1]), (masks, masks[:, :2])):
        with pytest.raises(DataError, match=r"masks of x must be \(K, H, W\) with K = 2"):
            counts.update(label, found, "x")
    with pytest.raises(DataError, match="mask 1 of x holds the value 7"):
        counts.update(np.stack([masks[0], masks[0] + 7]), masks, "x")
    with pytest.raises(ValueError, match="cannot add"):
        counts + MultilabelCounts(3)


def test_an_ignored_pixel_of_one_class_counts_for_the_others() -> None:
    label = np.array([[[255, 1]], [[1, 0]]], np.uint8)
    counts = MultilabelCounts(2)
    counts.update(label, np.ones_like(label))
    assert counts.matrix.tolist() == [[[0, 0], [0, 1]], [[0, 1], [0, 1]]]
