"""The random numbers of a rank: what dropout draws has to go on where an interrupted run stopped.

Augmentation does not depend on this (`data.transforms`). Each rank draws numbers of its own; rank 0
those of a single process. A rank that an interrupted run did not have starts from numbers that
(seed, rank, iteration) decide, so that going on with more processes can be repeated too.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_rank(seed: int, rank: int, iteration: int = 0) -> None:
    """Start the random numbers of a rank, other than rank 0's at the start of a run."""
    words = np.random.SeedSequence((seed, rank, iteration)).generate_state(1, np.uint64)
    chosen = int(words[0] >> np.uint64(1))
    random.seed(chosen)
    np.random.seed(chosen % 2**32)  # noqa: NPY002  foreign code may use the global state
    torch.manual_seed(chosen)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return all states of this process, as plain numbers and tensors (for `weights_only`)."""
    name, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with what `random_state` returned, perhaps on another device."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
