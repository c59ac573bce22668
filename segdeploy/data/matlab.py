"""Label masks in MATLAB files: SBD and PASCAL-Context publish them so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segdeploy.core.errors import DataError
from segdeploy.data.pairs import Stored
from segdeploy.frameworks.coco import find_coco


def read_mat(path: Path, fields: Sequence[str]) -> Stored:
    """Return the mask (H, W) behind nested fields of a .mat file (version 7 or older).

    Raises:
        DataError: If the file is missing, damaged, or has no such mask.
        BackendUnavailableError: Without SciPy.
    """
    find_coco("scipy")
    from scipy import io

    try:
        found = io.loadmat(path, simplify_cells=True)
        for field in fields:
            found = found[field]
    except Exception as error:  # SciPy's reader raises nearly anything on damaged files.
        raise DataError(
            f"{path} cannot be read: {type(error).__name__}: {error}.",
            hint=f"Expected a MATLAB file with {'.'.join(fields)}; unpack the data set again.",
        ) from error
    mask = np.asarray(found)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.unsignedinteger):
        raise DataError(f"{path} holds no label mask, but {mask.dtype} of shape {mask.shape}.")
    return mask
