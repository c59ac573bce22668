"""What a payload takes and gives: the input and output contract, and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task, label_dtype, num_logits


class InputKind(StrEnum):
    """`tensor`: float32 NCHW, preprocessed. `image`: uint8 NHWC RGB, the graph normalises."""

    TENSOR = "tensor"
    IMAGE = "image"


class OutputKind(StrEnum):
    """`logits`: float32 NKHW. `labels`: uint8/uint16 NHW. With confidence: also float32 NHW.

    `low-logits`: float32 N,K,h,w before the last upsampling, which the caller does (`Upsampling`).
    """

    LOGITS = "logits"
    LABELS = "labels"
    LABELS_CONFIDENCE = "labels+confidence"
    LOW_LOGITS = "low-logits"

    @property
    def has_logits(self) -> bool:
        """Whether logits can be had of it, of low resolution or full."""
        return self in {OutputKind.LOGITS, OutputKind.LOW_LOGITS}

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors, in order; no hyphen, which not every format takes."""
        return self.value.replace("-", "_").split("+")


MARGIN = 16.0
"""By how many float32 eps of the largest logit a class must lead; an interpolated difference is off
by at most 4 of them, whatever the order of operations."""
LEAST_EXTENT = 2.0**-103
"""Taken for the largest logit where that is smaller: products of denormals round by more."""

_RULE = (
    "The label of a pixel is the class of the largest logit, interpolated bilinearly from the four "
    "samples around it (ties: the lowest class; a NaN counts as the largest, and the first of "
    "several wins; one class: whether the logit is above 0, which NaN is not). "
    "A pixel at x lies at s = max(0, (w / W) * (x + 0.5) - 0.5), with align_corners at "
    "s = x * ((w - 1) / (W - 1)) (0 where W is 1), between the samples j = min(floor(s), w - 1) "
    "and min(j + 1, w - 1); the share of the second is t = min(s - j, 1), of the first 1 - t; "
    "likewise along y. Two samples a and b are combined as (a * (1 - t)) + (b * t): along x in "
    "both rows, then the two results along y. Every operation is rounded to float32, in the order "
    "of the brackets, x before y, and none is fused with another. "
    "Nothing needs to be interpolated where all four samples have the same largest class, are "
    "finite in all classes, and in each of them that class leads the second by more than "
    "margin * 2^-23 * max(largest |logit| of the sample, 2^-103) (one class: |logit| exceeds it). "
    "Elsewhere a class is out if its largest corner is below the largest of all classes' smallest "
    "corners by more than that, unless a corner is not finite."
)


@dataclass(frozen=True)
class Upsampling:
    """How a label map is made of `low_logits`; `rule` says it to other languages.

    `margin` is in float32 eps of the largest logit.
    """

    align_corners: bool
    mode: Literal["bilinear"] = "bilinear"
    margin: float = MARGIN
    rule: str = field(default=_RULE, repr=False)


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

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape is as promised."""
        return len(shape) == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, shape, strict=True)
        )


def contract_tensors(
    io: IoContract,
    task: Task,
    num_labels: int,
    size: tuple[int, int] | None,
    num_channels: int = 3,
    batch: int | None = None,
    low_size: tuple[int, int] | None = None,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return (inputs, outputs) of a payload; `size` (H, W) and `batch` are None where dynamic.

    So is `low_size`, that of `low_logits`.

    Tensor names equal the words of the contract, so that no caller has to look them up.
    """
    height, width = size or (None, None)
    if io.input is InputKind.TENSOR:
        taken = TensorSpec("tensor", "float32", (batch, num_channels, height, width))
    else:
        taken = TensorSpec("image", "uint8", (batch, height, width, num_channels))
    k = num_logits(task, num_labels)
    if io.output is OutputKind.LOGITS:
        return (taken,), (TensorSpec("logits", "float32", (batch, k, height, width)),)
    if io.output is OutputKind.LOW_LOGITS:
        low_height, low_width = low_size or (None, None)
        return (taken,), (TensorSpec("low_logits", "float32", (batch, k, low_height, low_width)),)
    labels = TensorSpec("labels", label_dtype(num_labels).name, (batch, height, width))
    if io.output is OutputKind.LABELS:
        return (taken,), (labels,)
    return (taken,), (labels, TensorSpec("confidence", "float32", (batch, height, width)))
