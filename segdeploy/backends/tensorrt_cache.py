"""The timing cache: what TensorRT measured of each kernel, kept from one build to the next.

It makes a second build quick, and equal: without it two builds on one GPU may choose different
kernels. One file per version and GPU, below `SEGDEPLOY_CACHE` or the user's cache folder. TensorRT
reads it in C++, so the file carries its sha256 in front: a damaged one is never handed over.

TensorRT-RTX compiles on the GPU that runs the engine: there the cache does nothing but force a GPU
into the build (its vendor says so), so it is not used; nor without a GPU, where nothing is timed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from segdeploy.backends.tensorrt_plan import NO_GPU, Place
from segdeploy.core.errors import ArtifactError
from segdeploy.core.files import write_bytes

_log = logging.getLogger(__name__)
_DIGEST = 32


def timing_cache_file(place: Place) -> Path | None:
    """Return the file for a place; None where a timing cache has no use."""
    if place.flavour == "tensorrt_rtx" or place.gpu == NO_GPU.name:
        return None
    named = os.environ.get("SEGDEPLOY_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(usual) / "segdeploy"
    words = f"{place.tensorrt}-{place.platform}-{place.gpu}-{place.capability}"
    return folder / "tensorrt" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words)}.timing"


def load_timing_cache(config: Any, file: Path | None) -> str:
    """Give the builder's configuration its cache; return what became of it, in a word or two."""
    if file is None or not hasattr(config, "create_timing_cache"):
        return "not used"
    content, word = _read(file)
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        word = "refused by TensorRT, ignored"
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    if word not in {"new", "used"}:
        _log.warning("The timing cache %s is %s.", file, word)
    return word


def _read(file: Path) -> tuple[bytes, str]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return b"", "new"
    except OSError as error:
        return b"", f"unreadable ({error.strerror}), ignored"
    body = content[_DIGEST:]
    if hashlib.sha256(body).digest() != content[:_DIGEST]:
        return b"", "damaged, ignored"
    return body, "used"


def save_timing_cache(config: Any, file: Path | None) -> None:
    """Keep what the build measured, atomically; a cache that cannot be written is no failure."""
    cache = config.get_timing_cache() if file is not None else None
    if file is None or cache is None:
        return
    body = bytes(cache.serialize())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, hashlib.sha256(body).digest() + body)
    except (OSError, ArtifactError) as error:
        _log.warning("The timing cache cannot be kept: %s", error)
