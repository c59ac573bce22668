"""A look at a whole data set before a model is trained on it: is it readable, labelled, and fair?

    check = check_data("camvid:data/camvid")
    check.passed, check.problems, check.splits[0].class_share

Every sample is read once. The same image in two splits is a leak: a model is then judged on what it
has seen (`copies` says which images are the same).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task, ignore_value
from segdeploy.data import TRAIN, VAL, open_dataset
from segdeploy.data.copies import Copies
from segdeploy.data.findings import DataCheck, Finding, Kind, SplitFacts
from segdeploy.data.sample import Dataset, LabelIdError, LabelSizeError, NoSplitError, Sample

SPLITS = (TRAIN, VAL, "test")
_RARE = 0.01
"""Below this part of an even share (1 / K of the pixels) a class is called rare."""

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
    copies = Copies()
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
                findings += copies.look(split, index, sample)
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


class _Tally:
    """The counts of one split, sample by sample."""

    def __init__(self, split: str, dataset: Dataset) -> None:
        self.split, self.num_images = split, len(dataset)
        is_binary = dataset.task is Task.BINARY
        self.classes = ("background", *dataset.classes) if is_binary else dataset.classes
        self.is_multilabel = dataset.task is Task.MULTILABEL
        self.ignored = ignore_value(len(self.classes))
        self.sizes: list[tuple[int, ...]] = []
        self.levels = np.zeros((3, 256), np.int64)
        self.class_pixels = np.zeros(len(self.classes), np.int64)
        self.class_images = np.zeros(len(self.classes), np.int64)
        self.labelled_pixels = np.zeros(len(self.classes) if self.is_multilabel else 1, np.int64)
        self.ignored_pixels = 0

    def add(self, sample: Sample) -> None:
        """Count a sample; a plug-in's data set may give what ours never would."""
        size, planes = sample.image.shape[:2], len(self.classes) if self.is_multilabel else None
        expected = size if planes is None else (planes, *size)
        if sample.label.shape != expected:
            raise LabelSizeError(
                f"The label of {sample.name} has size {sample.label.shape}, its image {size}."
            )
        pixels, labelled = self._count(sample)
        self.sizes.append(size)
        self.class_pixels += pixels
        self.class_images += pixels > 0
        self.labelled_pixels += labelled
        self.ignored_pixels += sample.label.size - int(labelled.sum())
        for channel in range(3):
            self.levels[channel] += np.bincount(sample.image[..., channel].ravel(), minlength=256)

    def _count(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pixels of each class, and how many are labelled."""
        planes = sample.label if self.is_multilabel else sample.label[None]
        num_ids = 2 if self.is_multilabel else len(self.classes)
        counts = np.stack(
            [np.bincount(plane.ravel(), minlength=self.ignored + 1) for plane in planes]
        )
        known = counts[:, :num_ids]
        if known.sum() + counts[:, self.ignored].sum() != sample.label.size:
            found = set(np.unique(sample.label).tolist())
            strange = sorted(found - {*range(num_ids), self.ignored})[:5]
            raise LabelIdError(f"The label of {sample.name} holds the ids {strange}.")
        return known[:, 1] if self.is_multilabel else known[0], known.sum(1)

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
            labelled_pixels=self.labelled_pixels,
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
