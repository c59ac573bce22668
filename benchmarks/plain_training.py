"""A plain training loop to compare with, built as torchvision's segmentation reference is.

Workers decode and transform with torchvision.transforms.v2; then cross-entropy plus half of the
auxiliary one, SGD, the poly schedule per iteration and the loss read after each step, in fp32 with
channels first. Loaders are made anew for each epoch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.data import TRAIN, open_dataset
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.pairs import match_by_stem
from segdeploy.data.transforms import TrainingView, TrainTransform
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.zoo import create_model

prepare_torchvision()

from torchvision import tv_tensors  # noqa: E402  after its door
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as vf  # noqa: E402

NUM_CLASSES, VOID, IMAGE_HEIGHT = 11, 11, 360  # CamVid as it is stored.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, MOMENTUM, WEIGHT_DECAY, POWER, AUX_WEIGHT = 0.01, 0.9, 1e-4, 0.9, 0.5
SCALE, FLIP = (0.5, 2.0), 0.5


@dataclass(frozen=True)
class Task:
    """What both sides train: the same model, images, batch, crop, workers and device."""

    model: str
    crop: tuple[int, int]
    data: str
    batch_size: int
    workers: int
    device: str

    @property
    def root(self) -> Path:
        """The folder of CamVid."""
        return Path(self.data.partition(":")[2])


class PlainCamVid(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of CamVid, decoded by Pillow and transformed with the global random state."""

    def __init__(self, root: Path, crop: tuple[int, int]) -> None:
        self.pairs = match_by_stem(root / TRAIN, root / f"{TRAIN}annot")
        self.transform = v2.Compose([
            v2.RandomResize(round(SCALE[0] * IMAGE_HEIGHT), round(SCALE[1] * IMAGE_HEIGHT)),
            v2.RandomHorizontalFlip(FLIP),
            v2.RandomCrop(
                crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: VOID}
            ),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, label_path = self.pairs[index]
        with Image.open(image_path) as picture, Image.open(label_path) as stored:
            image = tv_tensors.Image(vf.pil_to_tensor(picture.convert("RGB")))
            mask = tv_tensors.Mask(vf.pil_to_tensor(stored)[0])
        image, mask = self.transform(image, mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


class PlainLoop:
    """The loop's state; `train_epoch` goes through the images once.

    Args:
        task: What to train.
        num_epochs: Length of the schedule.
        has_our_loader: Take the images from segdeploy's loader instead.
    """

    def __init__(self, task: Task, num_epochs: int, *, has_our_loader: bool) -> None:
        self.task, self.has_our_loader, self.epoch = task, has_our_loader, 0
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.data = PlainCamVid(task.root, task.crop)
        self.model = create_model(task.model, NUM_CLASSES).to(task.device).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        num_steps = num_epochs * (len(self.data) // task.batch_size)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, num_steps, POWER)

    def train_epoch(self) -> float:
        """Train on all images once; return images/s."""
        started = time.perf_counter()
        num_steps = 0
        for images, labels in self._loader():
            self._step(images.to(self.task.device), labels.to(self.task.device))
            num_steps += 1
        if self.task.device != "cpu":
            torch.cuda.synchronize()
        self.epoch += 1
        return num_steps * self.task.batch_size / (time.perf_counter() - started)

    def _loader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        task = self.task
        if not self.has_our_loader:
            return DataLoader(
                self.data, task.batch_size, shuffle=True, num_workers=task.workers, drop_last=True,
                pin_memory=task.device != "cpu",
            )  # fmt: skip
        spec = AugmentSpec(task.crop, scale=SCALE, flip=FLIP, jitter=0.0)
        transform = TrainTransform(spec, PreprocessSpec(), NUM_CLASSES)
        view = TrainingView(open_dataset(task.data, TRAIN), transform, 0, self.epoch)
        batches = epoch_batches(len(view), task.batch_size, 0, self.epoch)
        return create_loader(view, batches, 0, 1, task.workers)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        output: dict[str, Any] = self.model(images)
        ignored = 255 if self.has_our_loader else VOID
        loss = _cross_entropy(output["out"], labels, ignored)
        if "aux" in output:
            loss = loss + AUX_WEIGHT * _cross_entropy(output["aux"], labels, ignored)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.item()  # What the reference's meters show after each step.


def _cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    return functional.cross_entropy(logits, labels, ignore_index=ignored)
