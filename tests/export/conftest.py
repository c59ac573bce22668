"""A tiny model in the zoo, so that every export takes seconds; multiclass and binary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.folder import Checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.export import export
from segdeploy.zoo import MODELS, ModelSpec, save_checkpoint

CLASSES = ("background", "disc", "box", "stripe", "thin")


class Tiny(nn.Module):
    """Stride-2 stem with HardSwish, one batch norm, one resize back to the input's size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits}."""
        y = F.hardswish(self.norm(self.stem(x)))
        y = torch.relu(self.body(y))
        size = (int(x.shape[2]), int(x.shape[3])) if isinstance(x.shape[2], int) else x.shape[2:]
        return {"out": F.interpolate(self.head(y), size=size, mode="bilinear")}


class Broken(Tiny):
    """Cannot be exported: it looks at values."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits}, differently for bright images."""
        if float(x.mean()) > 0.5:
            raise RuntimeError("too bright")
        return super().forward(x)


@pytest.fixture(autouse=True, scope="module")  # Not session: other rooms need the real zoo.
def _tiny_in_zoo() -> Iterator[None]:
    module = ModuleType("tiny_zoo_of_export_tests")
    for name, kind in (("TINY", Tiny), ("BROKEN", Broken)):
        setattr(module, name, ModelSpec(name.lower(), kind, 2, "tests", input_size=(64, 64)))
    table = {
        "tiny": "tiny_zoo_of_export_tests:TINY",
        "broken": "tiny_zoo_of_export_tests:BROKEN",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tiny_zoo_of_export_tests", module)
        patch.setitem(MODELS.__dict__, "_table", table)
        yield
    MODELS.__dict__.pop("_table", None)


def save_tiny(
    path: Path, *, task: Task = Task.MULTICLASS, model: str = "tiny", seed: int = 0
) -> Checkpoint:
    """Write a checkpoint whose batch norm is not the identity."""
    torch.manual_seed(seed)
    classes = CLASSES if task is Task.MULTICLASS else ("lesion",)
    module = Tiny(len(classes))
    with torch.no_grad():
        module.norm.running_mean.normal_()  # type: ignore[union-attr]
        module.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    saved: Checkpoint = save_checkpoint(
        path,
        module,
        model=model,
        task=task,
        classes=classes,
        preprocess=PreprocessSpec(),
        design_size=(64, 96),
        trained=False,
        note="for tests only",
    )
    return saved


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_tiny(tmp_path_factory.mktemp("run") / "checkpoint")


@pytest.fixture(scope="session")
def binary_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_tiny(tmp_path_factory.mktemp("binary") / "checkpoint", task=Task.BINARY)


@pytest.fixture(scope="session")
def broken_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_tiny(tmp_path_factory.mktemp("broken") / "checkpoint", model="broken")


@pytest.fixture(scope="module")
def plain_run(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the parent of every int8 graph, to be copied."""
    run = tmp_path_factory.mktemp("plain") / "run"
    export(checkpoint.path, ["onnx-fp32"], run)
    return run
