"""Where fetched files lie: the platform's cache folder, or SEGDEPLOY_CACHE.

A file's name begins with its digest, so that two stores may use one file name for two contents.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

from segdeploy.zoo.store.extra import require_zoo
from segdeploy.zoo.store.index import Entry
from segdeploy.zoo.store.locations import split

CACHE = "SEGDEPLOY_CACHE"


def cache_folder() -> Path:
    """Return the folder of fetched files, which may not exist yet.

    Raises:
        BackendUnavailableError: If the package that knows the platform's is not installed.
    """
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen) / "zoo"
    known = require_zoo("platformdirs", f"The cache folder (unless {CACHE} names one)")
    return Path(known.user_cache_dir("segdeploy", appauthor=False)) / "zoo"


def cached_file(entry: Entry) -> Path:
    """Return where the entry's file lies once it is fetched; it keeps its suffix."""
    name = unquote(split(entry.url).path).rpartition("/")[2]
    return cache_folder() / f"{entry.sha256[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-100:]}"


def cached_index(location: str) -> Path:
    """Return where the last copy of a remote index lies."""
    return cache_folder() / f"index-{hashlib.sha256(location.encode()).hexdigest()[:16]}.toml"
