"""Losses against torch's own reductions, and the extremes that half precision meets."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from segdeploy.core.task import Task
from segdeploy.train import LOSSES
from segdeploy.train.losses import BinaryCrossEntropy, CrossEntropy, Presence


def _batch(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 9, 11, generator=generator)
    label = torch.randint(0, max(2, num_classes), (2, 9, 11), generator=generator)
    label[:, :3] = 255
    return logits, label


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_cross_entropy_is_the_weighted_mean_over_valid_pixels(weights: torch.Tensor | None) -> None:
    logits, label = _batch(3)
    loss = CrossEntropy(255, weights)
    ours = loss.total(logits, label) / loss.normalizer(label)
    expected = F.cross_entropy(logits, label, weights, ignore_index=255)
    torch.testing.assert_close(ours.float(), expected)


def test_binary_cross_entropy_averages_over_valid_pixels() -> None:
    logits, label = _batch(1)
    loss = BinaryCrossEntropy(255)
    valid = label != 255
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], label[valid].float())
    torch.testing.assert_close(
        (loss.total(logits, label) / loss.normalizer(label)).float(), expected
    )


def test_class_weights_of_a_binary_task_weight_background_and_foreground() -> None:
    logits, label = _batch(1)
    weights = torch.tensor([1.0, 4.0])
    loss = BinaryCrossEntropy(255, weights)
    valid = label != 255
    target = label[valid].float()
    pixel = weights[label[valid]]
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][valid], target, pixel, reduction="sum"
    )
    ours = loss.total(logits, label) / loss.normalizer(label)
    torch.testing.assert_close(ours.float(), expected / pixel.sum())


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_finite_for_extreme_logits_and_all_ignored_labels(
    name: str, dtype: torch.dtype
) -> None:
    channels = 1 if name.startswith("binary") else 4
    loss = LOSSES.get(name)(255)
    logits = torch.full((1, channels, 4, 4), 1e4, dtype=dtype, requires_grad=True)
    for label in (torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255)):
        total = loss.total(logits, label)
        total.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(total)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
    assert float(loss.total(logits.detach(), torch.full((1, 4, 4), 255))) == 0


def test_presence_is_the_cross_entropy_of_the_classes_that_valid_pixels_show() -> None:
    label = torch.full((3, 4, 5), 255)
    label[0, 0], label[0, 1, 2] = 0, 3
    label[1, :2] = 2
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    shown = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]])
    loss = Presence(Task.MULTICLASS, 255)
    expected = F.binary_cross_entropy_with_logits(logits[:2], shown)
    torch.testing.assert_close(
        (loss.total(logits, label) / loss.normalizer(label)).float(), expected
    )
    assert float(loss.normalizer(label)) == 2  # The third image has no label at all.


def test_presence_of_a_binary_task_is_that_of_the_foreground() -> None:
    label = torch.tensor([[[0, 1, 255]], [[0, 0, 255]]])
    logits = torch.tensor([[0.7], [0.2]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0], [0.0]]))
    loss = Presence(Task.BINARY, 255)
    torch.testing.assert_close(
        (loss.total(logits, label) / loss.normalizer(label)).float(), expected
    )


def test_presence_without_any_label_is_zero() -> None:
    logits = torch.full((2, 3), 1e4, dtype=torch.float16, requires_grad=True)
    total = Presence(Task.MULTICLASS, 65535).total(logits, torch.full((2, 4, 4), 65535))
    total.backward()  # type: ignore[no-untyped-call]
    assert float(total.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
