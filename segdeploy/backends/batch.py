"""What a session may be fed: one check for all runtimes, so that they refuse with the same words.

A wrong batch would otherwise end in a foreign runtime's own message (or, worse, in a silent
conversion), which differs between backends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import DataError
from segdeploy.core.session import Array


def check_batch(batch: Array, spec: TensorSpec) -> None:
    """Check a batch against the input tensor of a contract.

    Raises:
        DataError: If type, rank or a fixed size differs, or the batch is empty.
    """
    if _fits(batch.shape, batch.dtype, spec.shape, spec.dtype):
        return
    found = batch.shape
    want = " x ".join("any" if side is None else str(side) for side in spec.shape)
    raise DataError(
        f"The input '{spec.name}' must be {spec.dtype} of shape {want}, "
        f"found {batch.dtype} of shape {' x '.join(map(str, found)) or 'none (a scalar)'}.",
        hint="'tensor' is float32 NCHW (preprocess_image makes it), 'image' is uint8 NHWC RGB; "
        "an artifact of a static size takes that size only.",
    )


@lru_cache(maxsize=256)  # A stream of images asks the same question again and again.
def _fits(
    shape: tuple[int, ...], kind: np.dtype[Any], wanted: tuple[int | None, ...], wanted_kind: str
) -> bool:
    return (
        kind == np.dtype(wanted_kind)  # Of this machine's byte order.
        and len(shape) == len(wanted)
        and all(want in (None, have) and have > 0 for want, have in zip(wanted, shape, strict=True))
    )
