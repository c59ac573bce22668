"""Groups of parameters, and gradients: rates and decay of each, clipping, parts of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task
from segdeploy.frameworks.distributed import Group
from segdeploy.train.config import TrainConfig
from segdeploy.train.loop import Asked, Trainer
from segdeploy.train.losses.presence import Presence
from segdeploy.train.losses.weighted import create_loss
from segdeploy.train.optimizers import create_optimizer, set_rate


class Net(nn.Module):
    """An encoder with a norm, and two heads that both give binary logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(7))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        names = ["out", *(f"aux{i}" for i in range(6))]
        return {n: head(features) for n, head in zip(names, self.heads, strict=True)}


def _config(**settings: Any) -> TrainConfig:
    plain: dict[str, Any] = {"model": "net", "data": "synthetic", "out": "run", "batch_size": 4}
    return TrainConfig(**plain | settings)


def _trainer(module: nn.Module, **settings: Any) -> Trainer:
    config = _config(**settings)
    loss = create_loss(config.loss, Task.BINARY, 255)
    group = Group(rank=0, world=1, device=torch.device("cpu"))
    return Trainer(config, module, loss, Presence(Task.BINARY, 255), group, 1)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 2, (4, 8, 8), generator=generator)
    label[0, 2:], label[1] = 255, 255  # The parts of a batch have few valid pixels, or none.
    return torch.randn(4, 3, 8, 8, generator=generator), label


def test_by_default_all_parameters_are_one_group() -> None:
    module = Net()
    (group,) = create_optimizer(_config(weight_decay=0.3), module).param_groups
    assert list(map(id, group["params"])) == list(map(id, module.parameters()))
    assert (group["weight_decay"], group["lr_factor"]) == (0.3, 1.0)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_the_head_has_its_rate_and_norms_and_biases_no_decay(kind: str) -> None:
    module = Net()
    config = _config(optimizer=kind, head_lr_factor=10.0, decay_norms=False, weight_decay=0.3)
    optimizer = create_optimizer(config, module)
    set_rate(optimizer, 0.5)
    names = {id(p): name for name, p in module.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        name: (0.5 if name.startswith("encoder.") else 5.0, 0.3 if p.ndim == 4 else 0.0)
        for name, p in module.named_parameters()
    }
    assert type(optimizer).__name__.lower() == kind


def test_a_model_without_an_encoder_has_no_rate_of_the_head() -> None:
    with pytest.raises(ConfigError, match="no child 'encoder' or 'backbone'"):
        create_optimizer(_config(head_lr_factor=2.0), nn.Sequential(nn.Conv2d(3, 1, 1)))


def test_seven_maps_with_unit_weights_are_the_plain_sum_of_their_losses() -> None:
    images, label = _batch()
    module = Net()
    module.eval()
    trainer = _trainer(module, aux_weight=1.0, channels_last=False, freeze_batch_norm=True,
                       optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0)  # fmt: skip
    trainer.optimizer.zero_grad()
    valid = label != 255
    maps = module(images).values()
    expected = torch.stack([
        F.binary_cross_entropy_with_logits(m[:, 0][valid], label[valid].float()) for m in maps
    ]).sum()  # fmt: skip
    expected.backward()  # type: ignore[no-untyped-call]
    slopes = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    assert len(slopes) == len(list(module.parameters()))
    before = [p.detach().clone() for p in module.parameters()]
    trainer._step(images, label, Asked())
    for old, new, slope in zip(before, module.parameters(), slopes, strict=True):
        torch.testing.assert_close(old - new, trainer.config.lr * slope)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_cross_entropy+2*dice", "lovasz"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(loss: str, parts: int) -> None:
    images, label = _batch()
    found = []
    for accumulate in (1, parts):
        module = Net()
        module.eval()  # Batch statistics are of a part, nothing else is.
        trainer = _trainer(module, loss=loss, accumulate=accumulate, head_lr_factor=3.0)
        step = trainer._step(images, label, Asked())[0].step
        found.append((step.loss, step.norm, [p.grad for p in module.parameters()]))
    (value, norm, slopes), (other, other_norm, others) = found
    assert norm == other_norm
    assert value == pytest.approx(other, rel=1e-6)
    for one, two in zip(slopes, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("amp", ["none", "fp16"])
@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_by_their_common_norm(limit: float, amp: str) -> None:
    """Those that are, not those that fp16 scales up."""
    images, label = _batch()
    slopes = []
    for clip_norm in (0.0, limit):
        module = Net()
        trainer = _trainer(module, clip_norm=clip_norm, head_lr_factor=3.0, amp=amp)
        trainer._step(images, label, Asked())
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        slopes.append(torch.cat([g.flatten() for g in grads]))
    norm = float(slopes[0].norm())
    assert norm > 0.01
    torch.testing.assert_close(slopes[1], slopes[0] * min(1.0, limit / norm), rtol=1e-4, atol=1e-7)
