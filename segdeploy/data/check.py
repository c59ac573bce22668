"""A look at a whole data set before a model is trained on it: is it readable, labelled, and fair?

    check = check_data("camvid:data/camvid")
    check.passed, check.problems, check.splits[0].class_share

Every sample is read once. Two images are the same if their decoded pixels are, whatever the format
of their files; the same image in two splits is a leak: a model is then judged on what it has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task, ignore_value
from segdeploy.data import TRAIN, VAL, open_dataset
from segdeploy.data.findings import DataCheck, Finding, Kind, SplitFacts
from segdeploy.data.sample import Dataset, LabelIdError, LabelSizeError, NoSplitError, Sample

SPLITS = (TRAIN, VAL, "test")
_RARE = 0.01
"""Below this part of an even share (1 / K of the pixels) a class is called rare."""

_Seen = dict[bytes, dict[str, tuple[str, bytes]]]
"""Digest of an image -> split -> name and digest of the label of the first such sample."""

Progress = Callable[[str, int, int], object]


def check_data(
    data: str, splits: Sequence[str] = (), progress: Progress | None = None
) -> DataCheck:
    """Read every sample of a data set and return what was found.

    Args:
        data: `name` or `name:root`.
        splits: Which to check; without any, those of train, val and test that there are.
        progress: Told the split, the samples read and the samples there are.

    Raises:
        DataError: If a split that was asked for cannot be opened, or none can.
    """
    opened, findings = _open_splits(data, splits)
    seen: _Seen = {}
    facts = []
    for split, dataset in opened.items():
        tally = _Tally(split, dataset)
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
                tally.add(sample)
            except DataError as error:
                findings.append(Finding(_kind_of(error), split, error.message, index))
            else:
                findings += _find_copies(seen, split, index, sample)
            if progress is not None:
                progress(split, index + 1, len(dataset))
        facts.append(tally.facts())
        findings += _judge_classes(facts[-1])
    task = next(iter(opened.values())).task
    return DataCheck(data=data, task=task, splits=tuple(facts), findings=tuple(findings))


def _open_splits(data: str, asked: Sequence[str]) -> tuple[dict[str, Dataset], list[Finding]]:
    if asked:
        return {split: open_dataset(data, split) for split in dict.fromkeys(asked)}, []
    opened: dict[str, Dataset] = {}
    findings, errors = [], []
    for split in SPLITS:
        try:
            opened[split] = open_dataset(data, split)
        except DataError as error:
            errors.append(error)
            kind = Kind.NO_SPLIT if isinstance(error, NoSplitError) else Kind.SPLIT
            findings.append(Finding(kind, split, error.message))
    if not opened:
        raise errors[0]
    # Few data sets have a labelled test split: its absence is not worth a word.
    return opened, [f for f in findings if (f.kind, f.split) != (Kind.NO_SPLIT, "test")]


def _kind_of(error: DataError) -> Kind:
    if isinstance(error, LabelIdError):
        return Kind.LABEL_IDS
    return Kind.SIZE if isinstance(error, LabelSizeError) else Kind.DAMAGED


def _find_copies(seen: _Seen, split: str, index: int, sample: Sample) -> list[Finding]:
    """Return a finding for each split in which these pixels were seen before, and note them."""
    label = _digest(sample.label)
    owners = seen.setdefault(_digest(sample.image), {})
    found = []
    for other, (name, other_label) in owners.items():
        text = f"{split}/{sample.name} has the same pixels as {other}/{name}"
        text += "." if label == other_label else ", but another label."
        kind = Kind.DUPLICATE if other == split else Kind.LEAK
        found.append(Finding(kind, split, text, index))
    owners.setdefault(split, (sample.name, label))
    return found


def _digest(pixels: NDArray[Any]) -> bytes:
    content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    content.update(pixels.tobytes())
    return content.digest()


class _Tally:
    """The counts of one split, sample by sample."""

    def __init__(self, split: str, dataset: Dataset) -> None:
        self.split, self.num_images = split, len(dataset)
        is_binary = dataset.task is Task.BINARY
        self.classes = ("background", *dataset.classes) if is_binary else dataset.classes
        self.ignored = ignore_value(len(self.classes))
        self.sizes: list[tuple[int, ...]] = []
        self.levels = np.zeros((3, 256), np.int64)
        self.class_pixels = np.zeros(len(self.classes), np.int64)
        self.class_images = np.zeros(len(self.classes), np.int64)
        self.ignored_pixels = 0

    def add(self, sample: Sample) -> None:
        """Count a sample; a plug-in's data set may give what ours never would."""
        size = sample.image.shape[:2]
        if sample.label.shape != size:
            raise LabelSizeError(
                f"The label of {sample.name} has size {sample.label.shape}, its image {size}."
            )
        counts = np.bincount(sample.label.ravel(), minlength=self.ignored + 1)
        known = counts[: len(self.classes)]
        if known.sum() + counts[self.ignored] != counts.sum():
            found = set(np.flatnonzero(counts).tolist())
            strange = sorted(found - {*range(known.size), self.ignored})[:5]
            raise LabelIdError(f"The label of {sample.name} holds the ids {strange}.")
        self.sizes.append(size)
        self.class_pixels += known
        self.class_images += known > 0
        self.ignored_pixels += int(counts[self.ignored])
        for channel in range(3):
            self.levels[channel] += np.bincount(sample.image[..., channel].ravel(), minlength=256)

    def facts(self) -> SplitFacts:
        """Return what was counted."""
        heights, widths = zip(*self.sizes, strict=True) if self.sizes else ((), ())
        return SplitFacts(
            split=self.split,
            classes=self.classes,
            num_images=self.num_images,
            num_read=len(self.sizes),
            heights=(min(heights), max(heights)) if heights else None,
            widths=(min(widths), max(widths)) if widths else None,
            levels=self.levels,
            class_pixels=self.class_pixels,
            class_images=self.class_images,
            ignored_pixels=self.ignored_pixels,
        )


def _judge_classes(facts: SplitFacts) -> list[Finding]:
    """Return at most two warnings: the classes that are absent, and those that are rare."""
    shares = {name: share or 0.0 for name, share in facts.class_share.items()}
    limit = _RARE / len(shares)
    absent = [name for name, share in shares.items() if not share]
    rare = [f"{name} ({100 * share:.2g} %)" for name, share in shares.items() if 0 < share < limit]
    return [
        Finding(
            kind, facts.split, f"{len(names)} of {len(shares)} classes {what}: {', '.join(names)}."
        )
        for kind, names, what in (
            (Kind.ABSENT_CLASS, absent, f"have no pixel in {facts.split}"),
            (Kind.RARE_CLASS, rare, f"are below {100 * limit:.2g} % of {facts.split}'s pixels"),
        )
        if names
    ]
