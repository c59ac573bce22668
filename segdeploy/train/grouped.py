"""Batches of one kind: samples are grouped, by default by the shape of their images.

An epoch keeps its sampler's order as far as it can: a batch is complete when its group has waited
long enough for it. What is left over at the end is filled up with samples seen before, so that an
epoch has as many batches as without groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np

from segdeploy.data.sample import Dataset


class GroupedBatchSampler:
    """Batches of `batch_size` sample indices, each of one group.

    Args:
        sampler: The order of the samples, by index; iterated anew for each pass.
        groups: The group of each sample of the data set.
        batch_size: Samples per batch.
    """

    def __init__(self, sampler: Sequence[int], groups: Sequence[int], batch_size: int) -> None:
        self.sampler, self.groups, self.batch_size = sampler, groups, batch_size

    def __len__(self) -> int:
        """Return the number of batches: as many as without groups."""
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield full batches as the sampler fills them, then the fullest of the rest, filled up."""
        waiting: dict[int, list[int]] = {}
        seen: defaultdict[int, list[int]] = defaultdict(list)
        num_missing = len(self)
        for index in self.sampler:
            group = self.groups[index]
            seen[group].append(index)
            batch = waiting.setdefault(group, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                yield waiting.pop(group)
                num_missing -= 1
        fullest = sorted(waiting.items(), key=lambda item: -len(item[1]))
        for group, batch in fullest[:num_missing]:
            yield batch + list(islice(cycle(seen[group]), self.batch_size - len(batch)))


def aspect_groups(ratios: Sequence[float], k: int) -> list[int]:
    """Return the group of each aspect ratio (width / height), from the narrowest on.

    The edges are 2**x for 2k + 1 values x evenly from -1 to 1, an edge belonging to the group above
    it; k = 0 parts portrait from landscape alone, at 1.
    """
    edges = 2.0 ** np.linspace(-1, 1, 2 * k + 1) if k else np.ones(1)
    found: list[int] = np.searchsorted(edges, ratios, side="right").tolist()
    return found


def aspect_ratios(dataset: Dataset) -> list[float]:
    """Return width / height of each image; without decoding it where the data set can tell.

    Raises:
        DataError: If an image cannot be read.
    """
    tell = getattr(dataset, "image_size", None) or (lambda i: dataset[i].image.shape[:2])
    sizes = (tell(index) for index in range(len(dataset)))
    return [width / height for height, width in sizes]
