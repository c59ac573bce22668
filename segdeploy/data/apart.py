"""Calibration is no evaluation: an image that chose an artifact's int8 ranges does not judge it.

Identity is the digest of the decoded pixels, so that a copy in another folder, or under another
name, is found too. The check stands where images are read anyway, and costs their hashing. Where
it is known before a build which images will judge (`Judges`), they are read once more for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.folder import check_companion, load_folder
from segdeploy.core.results import read_result
from segdeploy.data.sample import Dataset, Sample

CALIBRATION = "calibration.json"


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """Return the sha256 of an image's size and pixels."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def read_calibrated(artifact: Path) -> dict[str, str]:
    """Return {pixel digest: name} of the images that calibrated an artifact; others have none.

    Raises:
        ArtifactError: If the list that was written with the artifact is missing or another one.
    """
    check_companion(load_folder(artifact, check_files=False), CALIBRATION)
    images = (read_result(artifact / CALIBRATION) or {}).get("images")
    return names_by_digest(images if isinstance(images, list) else [])


def names_by_digest(images: Iterable[object]) -> dict[str, str]:
    """Return {pixel digest: name} of the entries of a `calibration.json`."""
    return {i["sha256"]: i["name"] for i in images if isinstance(i, dict) and {*i} >= _FIELDS}


@dataclass(frozen=True)
class Judges:
    """The images, by index, that are going to judge what is built."""

    dataset: Dataset
    indices: Sequence[int]

    def check_apart(self, calibrated: Mapping[str, str]) -> None:
        """Read each image and check that it is none of those that calibrate.

        Raises:
            DataError: If one is, or a file is damaged.
        """
        for index in self.indices:
            check_apart(self.dataset[index], self.dataset.name, calibrated)


def check_apart(sample: Sample, split: str, calibrated: Mapping[str, str]) -> Sample:
    """Return the sample of a split (by its name, say `camvid/val`).

    Raises:
        DataError: If its image is one of those that calibrated.
    """
    known = calibrated.get(pixel_digest(sample.image)) if calibrated else None
    if known is not None:
        raise DataError(
            f"Image {sample.name} of {split} is one that calibrated int8 (there: {known}); what is "
            "measured on it says nothing.",
            hint="Calibrate on images that are not in the split that judges: --calibration D.",
        )
    return sample


_FIELDS = {"sha256", "name"}
