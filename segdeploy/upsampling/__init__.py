"""Label maps from logits of low resolution, without making the logits of full resolution.

Bilinear interpolation takes convex combinations: between four samples with the same winner it wins
everywhere, so only the cells on class boundaries are computed. `docs/labels.md` has the argument.

labels = upsample_labels(low_logits, (520, 520), align_corners=False, task=Task.MULTICLASS)
"""

from __future__ import annotations

from segdeploy.upsampling.kernel import has_compiled, prepare_kernel, upsample_labels
from segdeploy.upsampling.manifest import LOW_LOGITS, Upsampler
from segdeploy.upsampling.reference import reference_labels, upsample_logits

__all__ = [
    "LOW_LOGITS",
    "Upsampler",
    "has_compiled",
    "prepare_kernel",
    "reference_labels",
    "upsample_labels",
    "upsample_logits",
]
