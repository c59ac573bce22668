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

    `build(K)` makes the module with K logit channels. `output_stride` S is input size over the
    size of the logits before the last upsampling; `input_size` (H, W) is the design size.
    """

    name: str
    build: Callable[[int], nn.Module]
    output_stride: int
    source: str
    task: Task = Task.MULTICLASS
    input_size: tuple[int, int] = (520, 520)
