"""A tiny model, really trained on the synthetic scenes, and artifacts with planted faults."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segdeploy.backends.torchscript import TORCHSCRIPT
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.folder import Artifact, Checkpoint, save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec, fixed_preprocess, preprocess_image
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.zoo import MODELS, ModelSpec, save_checkpoint

SIZE = (48, 64)


class Tiny(nn.Module):
    """Three convolutions, two BatchNorms: trains in seconds."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=2, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return {"out": self.head(x)}


@pytest.fixture(autouse=True)
def _tiny_in_zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("tiny_zoo_of_tests")
    module.TINY = ModelSpec("tiny", Tiny, 1, "tests", input_size=SIZE)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_zoo_of_tests", module)
    monkeypatch.setitem(MODELS.__dict__, "_table", {"tiny": "tiny_zoo_of_tests:TINY"})
    yield
    MODELS.__dict__.pop("_table", None)


def _train(data: str, num_channels: int) -> Tiny:
    torch.manual_seed(0)
    dataset = open_dataset(f"{data}:{SIZE[0]}x{SIZE[1]}:64", "train")
    samples = [dataset[i] for i in range(len(dataset))]
    spec = PreprocessSpec()
    images = torch.from_numpy(np.stack([preprocess_image(s.image, spec) for s in samples]))
    labels = torch.from_numpy(np.stack([s.label for s in samples]).astype(np.int64))
    model = Tiny(num_channels).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(120):
        part = torch.arange(step * 8, step * 8 + 8) % len(dataset)
        logits, label = model(images[part])["out"], labels[part]
        if num_channels == 1:
            valid = label != 255
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits[:, 0][valid], label[valid].float()
            )
        else:
            loss = nn.functional.cross_entropy(logits, label, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> Tiny:
    return _train("synthetic", 5)


@pytest.fixture(scope="session")
def trained_binary() -> Tiny:
    return _train("synthetic_binary", 1)


@dataclass(frozen=True)
class Run:
    """A run folder with the reference checkpoint; `export` adds an artifact of any weights."""

    checkpoint: Checkpoint
    model: Tiny

    def export(
        self,
        plant: Callable[[Tiny], object] = lambda _: None,
        target: str = "torchscript-fp32",
        io: IoContract | None = None,
        size: tuple[int, int] | None = None,
        parent: Artifact | None = None,
        **changes: Any,
    ) -> Artifact:
        """Write a TorchScript artifact; `plant` changes a copy of the model first."""
        changed = copy.deepcopy(self.model)
        with torch.no_grad():
            plant(changed)
        own, contract = self.checkpoint.manifest, io or IoContract()
        run = self.checkpoint.path.parent
        faulty = save_checkpoint(
            run / "faulty", changed, model="tiny", task=own.task, classes=own.classes,
            preprocess=own.preprocess,
        )  # fmt: skip
        path = run / str(changes.pop("name", target))
        inputs, outputs = contract_tensors(contract, own.task, len(own.classes), size)
        manifest = Manifest(
            kind="artifact", model="tiny", task=own.task, classes=own.classes,
            preprocess=fixed_preprocess(own.preprocess, size), inputs=inputs, outputs=outputs,
            files={"model.ts": ""},
            io=contract, target=target, design_size=SIZE, trained=own.trained,
            reference=self.checkpoint.link_from(path),
            parent=(parent or self.checkpoint).link_from(path),
        ).replace(**changes)  # fmt: skip

        def write(folder: Path) -> None:
            request = BuildRequest(
                checkpoint=faulty, payload=folder / "model.ts", precision=Precision.FP32,
                io=contract, size=size,
            )  # fmt: skip
            TORCHSCRIPT.build(request)

        saved = save_folder(path, manifest, write)
        assert isinstance(saved, Artifact)
        return saved


def _make_run(root: Path, model: Tiny, data: str, *, is_trained: bool = True) -> Run:
    dataset = open_dataset(data)
    saved = save_checkpoint(
        root / "checkpoint", model, model="tiny", task=dataset.task, classes=dataset.classes,
        preprocess=PreprocessSpec(), design_size=SIZE, trained=is_trained,
    )  # fmt: skip
    return Run(saved, model)


@pytest.fixture
def run(tmp_path: Path, trained: Tiny) -> Run:
    return _make_run(tmp_path, trained, "synthetic")


@pytest.fixture
def binary_run(tmp_path: Path, trained_binary: Tiny) -> Run:
    made = _make_run(tmp_path, trained_binary, "synthetic_binary")
    assert made.checkpoint.manifest.task is Task.BINARY
    return made


@pytest.fixture
def untrained_run(tmp_path: Path) -> Run:
    torch.manual_seed(1)
    return _make_run(tmp_path, Tiny(5).eval(), "synthetic", is_trained=False)
