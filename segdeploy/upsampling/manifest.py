"""What a manifest promises of `low_logits`: labels by the kernel, logits by the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ManifestError
from segdeploy.core.manifest import Manifest
from segdeploy.core.task import Labels, Task
from segdeploy.upsampling.kernel import prepare_kernel, upsample_labels
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
        return upsample_labels(
            low,
            size,
            align_corners=self.align_corners,
            task=self.task,
            num_labels=self.num_labels,
        )

    def complete(
        self, found: dict[str, NDArray[Any]], size: tuple[int, int]
    ) -> dict[str, NDArray[Any]]:
        """Return outputs with `logits` (N, K, H, W) in place of `low_logits`."""
        full = upsample_logits(found[LOW_LOGITS], size, align_corners=self.align_corners)
        return {"logits": full, **{k: v for k, v in found.items() if k != LOW_LOGITS}}
