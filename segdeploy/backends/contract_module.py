"""The contracts as torch code around a module, for the backends that trace or capture it.

The same operations in the same order as `core.preprocess.normalize_image` and `core.task`. Cast to
float comes before permute, as in the ONNX form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task, label_dtype
from segdeploy.zoo import main_logits

_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}


class ContractModule(nn.Module):
    """A module with the two ends of an `IoContract`; one or two output tensors."""

    mean: Tensor
    std: Tensor
    image_scale: Tensor

    def __init__(
        self,
        module: nn.Module,
        io: IoContract,
        task: Task,
        num_labels: int,
        preprocess: PreprocessSpec,
    ) -> None:
        super().__init__()
        self.module = module
        self.io = io
        self.task = task
        self.label_type = _DTYPES[label_dtype(num_labels).name]
        self.is_bgr = preprocess.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(preprocess.mean))
        self.register_buffer("std", torch.tensor(preprocess.std))
        self.register_buffer("image_scale", torch.tensor(preprocess.scale, dtype=torch.float32))

    def forward(self, batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the contract gives for one batch of what it takes."""
        tensor = self._normalize(batch) if self.io.input is InputKind.IMAGE else batch
        logits: Tensor = main_logits(self.module(tensor))
        if self.io.output is OutputKind.LOGITS:
            return logits
        labels = self._decide(logits)
        if self.io.output is OutputKind.LABELS:
            return labels
        return labels, self._confidence(logits)

    def _normalize(self, image: Tensor) -> Tensor:
        pixels = image.to(torch.float32)
        if self.is_bgr:
            pixels = pixels.flip(3)
        normal = (pixels * self.image_scale - self.mean) / self.std
        return normal.permute(0, 3, 1, 2).contiguous()

    def _decide(self, logits: Tensor) -> Tensor:
        if self.task is Task.BINARY:
            return (logits[:, 0] > 0).to(self.label_type)
        return logits.argmax(dim=1).to(self.label_type)

    def _confidence(self, logits: Tensor) -> Tensor:
        if self.task is Task.BINARY:
            return logits[:, 0].abs().sigmoid()
        return (logits - logits.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal()
