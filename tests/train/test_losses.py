"""Losses against torch's, segmentation-models-pytorch's and slow loops, and at the extremes.

Of segmentation-models-pytorch only what is right is compared: its focal, dice, jaccard, tversky and
lovasz of one image at a time, not its soft cross-entropies, which divide by ignored pixels too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.train import LOSSES
from segdeploy.train.losses.base import Loss
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.terms import Term, parse_terms
from segdeploy.train.losses.weighted import WeightedSum, create_loss

prepare_torchvision()
import segmentation_models_pytorch.losses as smp  # noqa: E402

CASES = [
    (name, task)
    for name in LOSSES.names()
    for task in (Task.MULTICLASS, Task.BINARY)
    if task in LOSSES.get(name).tasks
]


def _batch(task: Task, images: int = 3) -> tuple[Tensor, Tensor]:
    """Logits and labels whose images have different numbers of valid pixels and classes."""
    channels, ids = (1, 2) if task is Task.BINARY else (4, 3)  # The fourth class never occurs.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, channels, 9, 11, generator=generator)
    label = torch.randint(0, ids, (images, 9, 11), generator=generator)
    for image in range(images):
        label[image, : 2 * image + 1] = 255
    return logits, label


def _weights(task: Task) -> Tensor:
    return torch.tensor([1.0, 4.0] if task is Task.BINARY else [0.5, 1.0, 3.0, 1.0])


def _mean(loss: Loss | WeightedSum, logits: Tensor, label: Tensor) -> Tensor:
    if isinstance(loss, WeightedSum):
        return loss.value(loss.totals(logits, label), loss.normalizers(label))
    return loss.total(logits, label).double() / loss.normalizer(label)


def _close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.float(), expected.float())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_cross_entropy_is_torchs_weighted_mean_over_valid_pixels(
    smoothing: float, is_weighted: bool
) -> None:
    logits, label = _batch(Task.MULTICLASS)
    weights = _weights(Task.MULTICLASS) if is_weighted else None
    ours = create_loss(f"cross_entropy(smoothing={smoothing})", Task.MULTICLASS, 255, weights)
    expected = F.cross_entropy(logits, label, weights, ignore_index=255, label_smoothing=smoothing)
    _close(_mean(ours, logits, label), expected)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_binary_cross_entropy_is_torchs_weighted_mean_over_valid_pixels(is_weighted: bool) -> None:
    logits, label = _batch(Task.BINARY)
    valid = label != 255
    pixel = _weights(Task.BINARY)[label[valid]] if is_weighted else torch.ones(int(valid.sum()))
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0][valid], label[valid].float(), pixel, reduction="sum"
    )
    ours = create_loss(None, Task.BINARY, 255, _weights(Task.BINARY) if is_weighted else None)
    _close(_mean(ours, logits, label), expected / pixel.sum())


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.BINARY])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_formula_pixel_by_pixel(task: Task, gamma: float) -> None:
    logits, label = _batch(task)
    weights = _weights(task)
    total, norm = 0.0, 0.0
    for n, y, x in (label != 255).nonzero().tolist():
        value = int(label[n, y, x])
        if task is Task.BINARY:
            p = float(torch.sigmoid(logits[n, 0, y, x] * (1 if value else -1)))
        else:
            p = float(logits[n, :, y, x].softmax(0)[value])
        total += float(weights[value]) * -((1 - p) ** gamma) * math.log(p)
        norm += float(weights[value])
    ours = create_loss(f"focal(gamma={gamma})", task, 255, weights)
    assert float(_mean(ours, logits, label)) == pytest.approx(total / norm, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "mode"), [(Task.MULTICLASS, "multiclass"), (Task.BINARY, "binary")]
)
@pytest.mark.parametrize("alpha", [-1.0, 0.25])
def test_focal_sigmoid_is_that_of_segmentation_models_pytorch(
    task: Task, mode: str, alpha: float
) -> None:
    logits, label = _batch(task)
    theirs = smp.FocalLoss(mode, alpha if alpha >= 0 else None, gamma=3.0, ignore_index=255)
    ours = create_loss(f"focal_sigmoid(gamma=3,alpha={alpha})", task, 255)
    _close(_mean(ours, logits, label), theirs(logits, label))


def _of_images(theirs: Any, logits: Tensor, label: Tensor) -> Tensor:
    """The mean over images of a loss that knows only batches."""
    each = [theirs(a[None], b[None]) for a, b in zip(logits, label, strict=True)]
    return torch.stack(each).mean()


def _of_shown(theirs: Any, logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """The same, with the mean over the classes that an image shows instead of all four."""
    each = []
    for a, b in zip(logits, label, strict=True):
        shown = b[b != 255].unique()
        lost = torch.stack([theirs([int(c)])(a[None], b[None]) for c in shown])
        each.append((lost * weights[shown]).sum() / weights[shown].sum())
    return torch.stack(each).mean()


@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("dice", lambda **k: smp.DiceLoss(smooth=1.0, **k)),
        ("jaccard(smooth=3)", lambda **k: smp.JaccardLoss(smooth=3.0, **k)),
        ("tversky(alpha=0.3,beta=0.7,smooth=2)",
         lambda **k: smp.TverskyLoss(smooth=2.0, alpha=0.3, beta=0.7, **k)),
    ],
)  # fmt: skip
def test_overlap_losses_are_those_of_segmentation_models_pytorch_image_by_image(
    text: str, theirs: Callable[..., Any]
) -> None:
    logits, label = _batch(Task.BINARY)
    expected = _of_images(theirs(mode="binary", ignore_index=255), logits, label)
    _close(_mean(create_loss(text, Task.BINARY, 255), logits, label), expected)
    logits, label = _batch(Task.MULTICLASS)
    label[0, 5:] = 255  # Image 0 is short of pixels, image 1 of a class.
    label[1][label[1] == 2] = 0
    weights = _weights(Task.MULTICLASS)

    def one_class(classes: list[int]) -> Any:
        return theirs(mode="multiclass", ignore_index=255, classes=classes)

    for given in (torch.ones(4), weights):
        expected = _of_shown(one_class, logits, label, given)
        _close(_mean(create_loss(text, Task.MULTICLASS, 255, given), logits, label), expected)


@pytest.mark.parametrize(
    ("task", "mode"), [(Task.MULTICLASS, "multiclass"), (Task.BINARY, "binary")]
)
def test_lovasz_is_that_of_segmentation_models_pytorch_image_by_image(
    task: Task, mode: str
) -> None:
    logits, label = _batch(task)
    theirs = smp.LovaszLoss(mode, per_image=True, ignore_index=255)
    _close(_mean(create_loss("lovasz", task, 255), logits, label), theirs(logits, label))


def test_lovasz_slopes_are_those_of_algorithm_1_in_float64() -> None:
    """Of many pixels: a step is about one part in their number, near what float32 can tell."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (1, 40, 50), generator=generator)
    logits = torch.linspace(-0.9, 0.9, 2000, dtype=torch.float64).view(1, 1, 40, 50)
    logits.requires_grad_()
    total = create_loss("lovasz", Task.BINARY, 255).totals(logits, label).sum()
    (slope,) = torch.autograd.grad(total, logits)
    sign = 2.0 * label.flatten() - 1
    order = (1 - sign * logits.detach().flatten()).argsort(descending=True)
    lost, seen, num_true = [0.0], 0, int(label.sum())
    for rank, is_true in enumerate(label.flatten()[order].tolist()):
        seen += is_true
        lost.append(1 - (num_true - seen) / (num_true + rank + 1 - seen))
    expected = -sign[order] * torch.tensor(lost, dtype=torch.float64).diff()
    torch.testing.assert_close(slope.flatten()[order], expected, rtol=1e-9, atol=1e-12)


def test_lovasz_of_certain_predictions_is_the_mean_jaccard_loss() -> None:
    """At the corners of the cube the extension is the set function itself; weights count."""
    _, label = _batch(Task.MULTICLASS, images=1)
    guess = label.roll(1, 2).clamp(max=2)
    logits = 200.0 * F.one_hot(guess, 4).movedim(3, 1)
    valid = label != 255
    lost, weights = [], _weights(Task.MULTICLASS)
    for c in range(3):
        true, found = (label == c) & valid, (guess == c) & valid
        lost.append(1 - (true & found).sum() / (true | found).sum())
    expected = (torch.stack(lost) * weights[:3]).sum() / weights[:3].sum()
    _close(_mean(create_loss("lovasz", Task.MULTICLASS, 255, weights), logits, label), expected)


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.BINARY])
@pytest.mark.parametrize(("threshold", "keep"), [(0.3, 0.05), (0.01, 0.4), (1.0, 0.1)])
def test_hard_pixels_are_those_of_a_slow_loop(task: Task, threshold: float, keep: float) -> None:
    logits, label = _batch(task)
    weights, each = _weights(task), []
    both = torch.cat([torch.zeros_like(logits), logits], 1) if task is Task.BINARY else logits
    for image, truth in zip(both, label, strict=True):
        pixels = sorted(
            (float(image[:, y, x].softmax(0)[truth[y, x]]), float(weights[truth[y, x]]))
            for y, x in (truth != 255).nonzero().tolist()
        )
        least = math.ceil(keep * len(pixels))
        hard = [pair for i, pair in enumerate(pixels) if i < least or pair[0] <= threshold]
        each.append(sum(-math.log(p) * w for p, w in hard) / sum(w for _, w in hard))
    ours = create_loss(f"ohem_cross_entropy(threshold={threshold},keep={keep})", task, 255, weights)
    assert float(_mean(ours, logits, label)) == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_parts_of_a_batch_add_up_to_the_whole(name: str, task: Task) -> None:
    """What makes ranks and accumulated parts exact: totals add, and so do normalisers."""
    logits, label = _batch(task)
    loss = LOSSES.get(name)(task, 255, _weights(task))
    parts = [(loss.total(a, b), loss.normalizer(b)) for a, b in
             ((logits[:1], label[:1]), (logits[1:], label[1:]))]  # fmt: skip
    torch.testing.assert_close(sum(total for total, _ in parts), loss.total(logits, label))
    torch.testing.assert_close(sum(norm for _, norm in parts), loss.normalizer(label))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_ignored_pixels_change_nothing(name: str, task: Task) -> None:
    logits, label = _batch(task)
    loss = LOSSES.get(name)(task, 255, _weights(task))
    before = loss.total(logits, label)
    changed = torch.where((label == 255).unsqueeze(1), 7.0 - logits, logits).requires_grad_()
    after = loss.total(changed, label)
    torch.testing.assert_close(after, before)
    (slope,) = torch.autograd.grad(after, changed)
    ignored = (label == 255).unsqueeze(1).expand_as(slope)
    assert not slope[ignored].any()
    assert slope[~ignored].any()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_gradients_are_those_of_finite_differences(name: str, task: Task) -> None:
    logits, label = _batch(task, images=2)
    logits, label = logits[:, :, :6, :4].double().requires_grad_(), label[:, :6, :4]
    weights = _weights(task).double()
    loss = LOSSES.get(name)(task, 255, weights)
    assert torch.autograd.gradcheck(lambda x: loss.total(x, label), (logits,))


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_losses_are_finite_for_extreme_logits(
    name: str, task: Task, dtype: torch.dtype, value: float
) -> None:
    loss = LOSSES.get(name)(task, 255)
    logits = torch.zeros((2, 1 if task is Task.BINARY else 4, 4, 4), dtype=dtype)
    logits[:, 0] = value
    logits.requires_grad_()
    for target in (0, 1):
        total = loss.total(logits, torch.full((2, 4, 4), target))
        (slope,) = torch.autograd.grad(total, logits)
        assert torch.isfinite(total)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_batch_without_a_valid_pixel_is_worth_nothing(name: str, task: Task) -> None:
    logits = torch.full((2, 1 if task is Task.BINARY else 4, 4, 4), 1e4, dtype=torch.float16)
    logits.requires_grad_()
    label = torch.full((2, 4, 4), 255)
    loss = create_loss(name, task, 255, _weights(task))
    value = loss.value(loss.totals(logits, label), loss.normalizers(label))
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_a_class_without_weight_is_worth_nothing(smoothing: float) -> None:
    logits, label = _batch(Task.MULTICLASS)
    logits.requires_grad_()
    weights = torch.tensor([0.0, 1.0, 3.0, 1.0])
    loss = create_loss(f"cross_entropy(smoothing={smoothing})", Task.MULTICLASS, 255, weights)
    label = torch.where(label == 255, 255, 0)
    value = loss.value(loss.totals(logits, label), loss.normalizers(label))
    (slope,) = torch.autograd.grad(value, logits)
    assert float(value.detach()) == 0
    assert not slope.any()


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integer_type(name: str, task: Task, kind: torch.dtype) -> None:
    logits, label = _batch(task)
    loss = create_loss(name, task, 255, _weights(task))
    assert torch.equal(_mean(loss, logits, label.to(kind)), _mean(loss, logits, label))


def test_a_sum_is_weighted_term_by_term() -> None:
    logits, label = _batch(Task.MULTICLASS)
    one, other = (create_loss(t, Task.MULTICLASS, 255) for t in ("focal(gamma=3)", "lovasz"))
    expected = 0.5 * _mean(one, logits, label) + _mean(other, logits, label)
    both = create_loss("0.5 * focal(gamma=3) + lovasz", Task.MULTICLASS, 255)
    _close(_mean(both, logits, label), expected)


def test_terms_have_weights_and_options() -> None:
    assert parse_terms(" 0.5*focal(gamma=3) + tversky(alpha=0.3, beta=.7)+dice") == [
        Term("focal", 0.5, {"gamma": 3.0}),
        Term("tversky", 1.0, {"alpha": 0.3, "beta": 0.7}),
        Term("dice"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dice+", "cannot be read at ''"),
        ("", "cannot be read at ''"),
        ("x*dice", "cannot be read at 'x\\*dice'"),
        ("nan*dice", "cannot be read at 'nan\\*dice'"),
        ("-1*dice", "not positive: -1"),
        ("focal(gamma)", "cannot be read at 'gamma'"),
        ("focal(gamma=2,gamma=3)", "cannot be read at 'gamma=3'"),
        ("focal(gamma=2", "cannot be read at 'focal\\(gamma=2'"),
    ],
)
def test_a_loss_that_cannot_be_read_says_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_terms(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dic", "Did you mean dice"),
        ("focal(gama=2)", "Did you mean gamma"),
        ("lovasz(x=2)", "no option 'x'"),
        ("binary_cross_entropy", "is for binary, multilabel tasks, but the data are multiclass"),
        ("cross_entropy(smoothing=1)", r"smoothing must be in \[0, 1\), found 1"),
        ("focal(gamma=-1)", "gamma must be at least 0"),
        ("focal_sigmoid(alpha=2)", "alpha must be in 0..1, or -1 for none"),
        ("dice(smooth=0)", "smooth must be positive"),
        ("tversky(alpha=-1)", "alpha must be at least 0"),
        ("ohem_cross_entropy(threshold=0)", "threshold must be in"),
        ("ohem_cross_entropy(keep=2)", "keep must be in"),
    ],
)
def test_a_wrong_loss_is_a_config_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_loss(text, Task.MULTICLASS, 255)
    assert re.search(message, str(caught.value))


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
