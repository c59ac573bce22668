"""A model of a few layers, for backends whose converters take minutes for a real one."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segdeploy.core.folder import Checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task

_MODULE = "small_nets_of_tests"
_SOURCE = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    def layer(num_in, num_out, activation):
        convolution = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(num_out), activation)

    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.high = layer(3, 16, nn.ReLU())
            self.low = layer(16, 32, nn.Hardswish())
            self.join = nn.Sequential(nn.Conv2d(48, 32, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(32, num_classes, 1)

        def forward(self, x):
            high = self.high(x)
            low = F.interpolate(self.low(high), high.shape[-2:], mode="nearest")
            logits = self.head(self.join(torch.cat([high, low], dim=1)))
            return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
"""


@pytest.fixture(scope="session")
def small_net(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path, int], Checkpoint]]:
    """A function (path, number of classes) that saves a seeded checkpoint of a few layers."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("small_nets")
    (folder / f"{_MODULE}.py").write_text(textwrap.dedent(_SOURCE))

    def save(path: Path, num_classes: int) -> Checkpoint:
        from segdeploy.zoo import create_model, save_checkpoint

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = create_model(f"{_MODULE}:Net", num_classes)
            for part in module.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.running_mean.normal_(0, 0.1)
                    part.running_var.uniform_(0.5, 1.5)
        saved: Checkpoint = save_checkpoint(
            path, module, model=f"{_MODULE}:Net", task=Task.MULTICLASS,
            classes=tuple(f"c{i}" for i in range(num_classes)), preprocess=PreprocessSpec(),
            trained=False,
        )  # fmt: skip
        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("SEGDEPLOY_ALLOW_CODE", "1")
        yield save
    sys.modules.pop(_MODULE, None)
