"""What most likely mends an artifact that broke a rule, where there is one thing to try.

float16 overflows without a word: beyond 65504 an activation is infinite. Which ones do is only
known from images, so an export that saw none is told to look.
"""

from __future__ import annotations

from collections.abc import Sequence

from segdeploy.core.manifest import Manifest
from segdeploy.core.results import Failure
from segdeploy.core.target import Precision

_NOT_NUMBERS = {"runs", "output_contract", "confidence_range", "reference_finite"}


def find_cure(manifest: Manifest, failures: Sequence[Failure]) -> str:
    """Return what to try, in words; empty where nothing is known."""
    is_half = (manifest.target or "").endswith(f"-{Precision.FP16}")
    is_cast = manifest.parent != manifest.reference  # By our own pass, from the fp32 graph.
    broken = {failure.rule for failure in failures} - _NOT_NUMBERS
    if not (is_half and is_cast and broken) or "calibration" in manifest.options:
        return ""
    return (
        "Beyond 65504 a number of fp16 is infinite. Export again with --calibration NAME:ROOT: "
        "what overflows on its images then stays in fp32."
    )
