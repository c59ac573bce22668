"""What a payload takes and gives: the input and output contract, and its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task, label_dtype, num_logits


class InputKind(StrEnum):
    """`tensor`: float32 NCHW, preprocessed. `image`: uint8 NHWC RGB, the graph normalises."""

    TENSOR = "tensor"
    IMAGE = "image"


class OutputKind(StrEnum):
    """`logits`: float32 NKHW. `labels`: uint8/uint16 NHW. With confidence: also float32 NHW."""

    LOGITS = "logits"
    LABELS = "labels"
    LABELS_CONFIDENCE = "labels+confidence"


@dataclass(frozen=True)
class IoContract:
    """The two ends of a payload; the defaults are what every backend supports."""

    input: InputKind = InputKind.TENSOR
    output: OutputKind = OutputKind.LOGITS

    @property
    def suffix(self) -> str:
        """Folder-name suffix of what is not default, e.g. `+image+labels`."""
        parts = []
        if self.input is not InputKind.TENSOR:
            parts.append(self.input.value)
        if self.output is not OutputKind.LOGITS:
            parts.append(self.output.value)
        return "".join(f"+{p}" for p in parts)


@dataclass(frozen=True)
class SizeBounds:
    """Sizes (H, W) that a dynamic payload is built for: least, most used, largest; and N from 1.

    `str()` is the form that users write, `256x256..512x512..1024x1024`.
    """

    least: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]
    max_batch: int = 1

    def __post_init__(self) -> None:
        ordered = all(
            0 < low <= mid <= high
            for low, mid, high in zip(self.least, self.usual, self.largest, strict=True)
        )
        if not ordered or self.max_batch < 1:
            raise ConfigError(
                f"The sizes {self} with batches up to {self.max_batch} are not in order.",
                hint="Write LEAST..LARGEST or LEAST..USUAL..LARGEST, e.g. 256x256..1024x1024.",
            )

    def __str__(self) -> str:
        return "..".join(f"{h}x{w}" for h, w in (self.least, self.usual, self.largest))

    def has(self, batch: int, height: int, width: int) -> bool:
        """Return whether a payload takes N images of H x W."""
        low, high = self.least, self.largest
        fits = low[0] <= height <= high[0] and low[1] <= width <= high[1]
        return fits and 1 <= batch <= self.max_batch


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, NumPy dtype name, and shape; None is a dynamic size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def contract_tensors(
    io: IoContract,
    task: Task,
    num_labels: int,
    size: tuple[int, int] | None,
    num_channels: int = 3,
    batch: int | None = None,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return (inputs, outputs) of a payload; `size` (H, W) and `batch` are None where dynamic.

    Tensor names equal the words of the contract, so that no caller has to look them up.
    """
    height, width = size or (None, None)
    if io.input is InputKind.TENSOR:
        taken = TensorSpec("tensor", "float32", (batch, num_channels, height, width))
    else:
        taken = TensorSpec("image", "uint8", (batch, height, width, num_channels))
    if io.output is OutputKind.LOGITS:
        k = num_logits(task, num_labels)
        return (taken,), (TensorSpec("logits", "float32", (batch, k, height, width)),)
    labels = TensorSpec("labels", label_dtype(num_labels).name, (batch, height, width))
    if io.output is OutputKind.LABELS:
        return (taken,), (labels,)
    return (taken,), (labels, TensorSpec("confidence", "float32", (batch, height, width)))
