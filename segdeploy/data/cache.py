"""Decoded samples kept in memory, so that a run decodes each file once and not once per epoch.

The main process reads them before it forks its loaders, and nobody writes to them afterwards:
loaders share the pages of the parent (copy on write), so that their number does not multiply the
memory, nothing is to be locked, and one that is killed takes nothing along.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from segdeploy.core.task import Task
from segdeploy.data.sample import Dataset, Sample


class CachedDataset:
    """A data set whose first samples, as many as fit, come from memory; the others are read.

    Args:
        samples: What to read from; sample i must be the same each time.
        limit_bytes: The most that images and labels may take together.

    Raises:
        DataError: If one of the samples that fit cannot be read.
    """

    def __init__(self, samples: Dataset, limit_bytes: int) -> None:
        self._samples = samples
        self._kept: list[Sample] = []
        self.num_bytes = 0
        for index in range(len(samples)):
            sample = samples[index]
            size = sample.image.nbytes + sample.label.nbytes
            if self.num_bytes + size > limit_bytes:
                break
            self._kept.append(_frozen_copy(sample))
            self.num_bytes += size

    @property
    def name(self) -> str:
        """What results call it."""
        return self._samples.name

    @property
    def task(self) -> Task:
        """What its labels mean."""
        return self._samples.task

    @property
    def classes(self) -> tuple[str, ...]:
        """K class names."""
        return self._samples.classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; the arrays of one from memory are read-only."""
        return self._kept[index] if 0 <= index < len(self._kept) else self._samples[index]

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's (H, W); without decoding it where the data set can tell."""
        tell = getattr(self._samples, "image_size", None)
        if tell is None or index < len(self._kept):
            height, width = self[index].image.shape[:2]
        else:
            height, width = tell(index)
        return height, width

    def __getstate__(self) -> dict[str, Any]:
        """Leave the samples behind: a loader that is spawned, not forked, would hold a copy."""
        return self.__dict__ | {"_kept": []}


def _frozen_copy(sample: Sample) -> Sample:
    """Return the sample with arrays of its own: a view would hold on to all of what it views."""
    image, label = sample.image.copy(), sample.label.copy()
    image.setflags(write=False)
    label.setflags(write=False)
    return replace(sample, image=image, label=label)
