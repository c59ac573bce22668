"""Losses of a multilabel task, against torch, SMP and loops over classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import create_loss

NAMES = (
    "binary_cross_entropy", "dice", "focal", "focal_sigmoid(alpha=0.25)", "jaccard", "lovasz",
    "ohem_cross_entropy", "tversky(alpha=0.3, beta=0.7)",
)  # fmt: skip


def _draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 5, 6, generator=generator)
    label = torch.randint(0, 2, (2, 3, 5, 6), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    return logits, label


def _value(text: str, logits: Tensor, label: Tensor, task: Task = Task.MULTILABEL) -> Tensor:
    loss = create_loss(text, task, 255)
    return loss.value(loss.totals(logits, label), loss.normalizers(label))


def test_cross_entropy_is_torchs_over_the_valid_decisions() -> None:
    logits, label = _draw()
    valid = label != 255
    expected = functional.binary_cross_entropy_with_logits(logits[valid], label[valid].float())
    assert _value("binary_cross_entropy", logits, label).item() == pytest.approx(expected.item())
    assert create_loss(None, Task.MULTILABEL, 255).losses[0].total(logits, label) > 0


@pytest.mark.parametrize("name", NAMES[1:])
def test_each_class_is_a_binary_task_and_they_are_averaged(name: str) -> None:
    logits, label = _draw()
    parts = [
        (loss.totals(z, y), loss.normalizers(y))
        for k in range(3)
        for loss in [create_loss(name, Task.BINARY, 255)]
        for z, y in [(logits[:, k : k + 1], label[:, k].long())]
    ]
    total, norm = (sum(each) for each in zip(*parts, strict=True))
    found = _value(name, logits, label)
    assert found.item() == pytest.approx((total / norm).item(), rel=1e-6)


@pytest.mark.parametrize(("name", "mode"), [("dice", "DiceLoss"), ("jaccard", "JaccardLoss")])
def test_overlaps_are_those_of_smp_where_all_is_labelled(name: str, mode: str) -> None:
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    import segmentation_models_pytorch as smp

    logits, label = _draw()
    label = (label == 1).to(torch.uint8)
    reference = getattr(smp.losses, mode)("multilabel", smooth=1.0)
    expected = torch.stack([
        reference(z[None, None], y[None, None].float())
        for z, y in zip(logits.flatten(0, 1), label.flatten(0, 1), strict=True)
    ]).mean()  # fmt: skip
    assert _value(name, logits, label).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_have_no_gradient_and_large_logits_stay_finite(name: str) -> None:
    logits, label = _draw(1)
    logits = (1e4 * logits.sign()).requires_grad_()
    value = _value(name, logits, label)
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[label == 255].any()
    nothing = torch.full_like(label, 255)
    assert _value(name, logits, nothing).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    logits, label = _draw(2)
    exact = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: _value(name, z, label), (exact,))


def test_a_loss_of_one_class_a_pixel_is_refused() -> None:
    with pytest.raises(ConfigError, match="multilabel") as caught:
        create_loss("cross_entropy", Task.MULTILABEL, 255)
    assert "binary_cross_entropy" in (caught.value.hint or "")


def test_presence_is_whether_a_valid_pixel_says_yes() -> None:
    _, label = _draw()
    label[0, 1] = 255
    label[0, 2] = 0
    logits = torch.randn(2, 3)
    truth = torch.tensor([[float((label[n, k] == 1).any()) for k in range(3)] for n in range(2)])
    assert truth[0].tolist() == [1, 0, 0]
    expected = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    found = Presence(Task.MULTILABEL, 255).total(logits, label)
    assert found.item() == pytest.approx(expected.mean(1).sum().item())
