"""What a manifest promises of `low_logits`: labels by the kernel, logits by the reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ManifestError
from segdeploy.core.manifest import Manifest
from segdeploy.core.task import Labels, Task
from segdeploy.upsampling.kernel import Labeller, fastest_form, make_labeller, prepare_kernel
from segdeploy.upsampling.reference import upsample_logits

LOW_LOGITS = "low_logits"


@dataclass(frozen=True)
class Upsampler:
    """From low-resolution logits to what the other output contracts give."""

    task: Task
    num_labels: int
    align_corners: bool

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return that of an artifact.

        Raises:
            ManifestError: If it does not say how, or in a way that is not known here.
        """
        said = manifest.upsampling
        if said is None:
            raise ManifestError(
                "The artifact gives low-resolution logits and does not say how they are upsampled.",
                hint="Export it again.",
            )
        return cls(manifest.task, len(manifest.classes), said.align_corners)

    def prepare(self) -> None:
        """Make the kernel ready, so that the first image does not pay for it."""
        prepare_kernel(self.num_labels)

    def labels(self, low: NDArray[np.floating[Any]], size: tuple[int, int]) -> Labels:
        """Return the label map (N, H, W) at `size` (H, W)."""
        low_size = (low.shape[2], low.shape[3])
        label = _labeller(self.task, self.num_labels, self.align_corners, low_size, size)
        return label(low)

    def complete(
        self, found: dict[str, NDArray[Any]], size: tuple[int, int]
    ) -> dict[str, NDArray[Any]]:
        """Return outputs with `logits` (N, K, H, W) in place of `low_logits`."""
        full = upsample_logits(found[LOW_LOGITS], size, align_corners=self.align_corners)
        return {"logits": full, **{k: v for k, v in found.items() if k != LOW_LOGITS}}


@lru_cache(maxsize=16)  # A folder of pictures may have as many sizes as pictures.
def _labeller(
    task: Task,
    num_labels: int,
    align_corners: bool,
    low_size: tuple[int, int],
    size: tuple[int, int],
) -> Labeller:
    return make_labeller(low_size, size, align_corners, task, num_labels, fastest_form())
