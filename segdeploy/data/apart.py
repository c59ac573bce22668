"""Calibration is no evaluation: an image that chose an artifact's int8 ranges does not judge it.

Identity is the digest of the decoded pixels, so that a copy in another folder, or under another
name, is found too. The check stands where images are read anyway, and costs their hashing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.results import read_result
from segdeploy.data.sample import Sample

CALIBRATION = "calibration.json"


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """Return the sha256 of an image's size and pixels."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def read_calibrated(artifact: Path) -> dict[str, str]:
    """Return {pixel digest: name} of the images that calibrated an artifact; others have none."""
    images = (read_result(artifact / CALIBRATION) or {}).get("images")
    found = images if isinstance(images, list) else []
    return {i["sha256"]: i["name"] for i in found if isinstance(i, dict) and {*i} >= _FIELDS}


def check_apart(sample: Sample, split: str, calibrated: Mapping[str, str]) -> Sample:
    """Return the sample of a split (by its name, say `camvid/val`).

    Raises:
        DataError: If its image is one of those that calibrated.
    """
    known = calibrated.get(pixel_digest(sample.image)) if calibrated else None
    if known is not None:
        raise DataError(
            f"Image {sample.name} of {split} calibrated this artifact (there: {known}); what is "
            "measured on it says nothing.",
            hint="Calibrate on images that are not in the split that judges: --calibration D.",
        )
    return sample


_FIELDS = {"sha256", "name"}
