"""What is known of a model before it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segdeploy.core.task import Task

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """A named configuration of the zoo.

    `build(num_classes, in_channels)` makes a module with K = `num_classes` logit channels; the
    second argument is given only where it is not 3.
    `output_stride` S is input size over the size of the logits before the last upsampling (None
    for a model of one's own);
    `input_size` (H, W) is the design size; `family` says whose net of that name it is (the systems
    use the same words for different nets); `encoder` is its name where the model has a free one.
    Where `is_fixed_size`, exported forms have the size of the export.
    """

    name: str
    build: Callable[..., nn.Module]
    output_stride: int | None
    source: str
    family: str = ""
    task: Task = Task.MULTICLASS
    input_size: tuple[int, int] = (520, 520)
    encoder: str | None = None
    is_fixed_size: bool = False


@dataclass(frozen=True)
class Architecture:
    """A decoder that goes onto any encoder: `<name>_<encoder>` is a model.

    `build(encoder, num_classes, in_channels)`; the other fields are those of `ModelSpec`.
    """

    name: str
    build: Callable[..., nn.Module]
    output_stride: int
    source: str
    family: str
    input_size: tuple[int, int] = (512, 512)
    is_fixed_size: bool = False
