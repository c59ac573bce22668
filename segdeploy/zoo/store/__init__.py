"""The store of trained weights: an index that anyone can host, and a cache of what was fetched.

    from segdeploy.zoo.store import pull
    checkpoint = pull("fcn_resnet50-coco", out=Path("runs/fcn/checkpoint")).checkpoint

Nothing here loads a framework but the import of a library's weights.
"""

from __future__ import annotations

from segdeploy.zoo.store.check import Finding, State, verify
from segdeploy.zoo.store.index import Entry, Format, Index, Metrics
from segdeploy.zoo.store.pull import Pulled, pull
from segdeploy.zoo.store.push import Pushed, push
from segdeploy.zoo.store.reading import read_index
from segdeploy.zoo.store.sources import Patience

__all__ = [
    "Entry",
    "Finding",
    "Format",
    "Index",
    "Metrics",
    "Patience",
    "Pulled",
    "Pushed",
    "State",
    "pull",
    "push",
    "read_index",
    "verify",
]  # fmt: skip
