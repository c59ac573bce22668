"""What a report shows of `eval.json`: scores with their intervals, confusions, images by score."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from segdeploy.report.documents import Document

_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True)
class ClassScore:
    """One class: IoU, its 95 % interval, Dice and the share of labelled pixels, all in [0, 1]."""

    name: str
    iou: float
    interval: tuple[float, float] | None = None
    dice: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Confusion:
    """Pixels (K, K) of each labelled class (row) by what was predicted (column)."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Labelled pixels per class."""
        return tuple(map(sum, self.counts))

    def share(self, truth: int, predicted: int) -> float:
        """Return the part of a class's pixels that were taken for another, in [0, 1]."""
        total = self.totals[truth]
        return self.counts[truth][predicted] / total if total else 0.0


@dataclass(frozen=True)
class Quality:
    """What `evaluate` found; IoU in [0, 1], `delta_points` in percentage points to fp32.

    `scores` are those of `SCORES` that there are. `views` says in words how images were run, where
    not simply once as a whole. `captions` say what the pictures `worst_00`, `best_00`, ... show.
    """

    mean_iou: float | None = None
    interval: tuple[float, float] | None = None
    delta_points: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    classes: tuple[ClassScore, ...] = ()
    confusion: Confusion | None = None
    captions: dict[str, str] = field(default_factory=dict)
    data: str = ""
    num_images: float | None = None
    views: str = ""

    @property
    def scored_on(self) -> tuple[str, ...]:
        """What must agree for two scores to be compared: images, and how they were run."""
        return (self.data, f"{self.num_images or 0:.0f} images", self.views)

    @property
    def class_iou(self) -> dict[str, float]:
        """IoU by class, of those that are present."""
        return {score.name: score.iou for score in self.classes}


SCORES = {
    "foreground_iou": "foreground IoU",
    "foreground_dice": "foreground Dice",
    "mae": "MAE",
    "max_f": "max-F",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_dice": "mean Dice",
    "frequency_weighted_iou": "freq.-weighted IoU",
    "boundary_iou": "boundary IoU",
    "boundary_f": "boundary F",
    "instances.segm.ap": "AP of masks",
    "instances.bbox.ap": "AP of boxes",
}
"""Where a score stands in `eval.json`, and what it is called."""


def read_quality(found: Document, reference: Document | None) -> Quality:
    """Read `eval.json`; the difference is to the reference, if that was scored in the same way."""
    if not found.is_present:
        return Quality()
    mean, delta = found.number("mean_iou"), None
    if reference is not None and reference.is_present:
        base = reference.number("mean_iou")
        if mean is not None and base is not None and _data(found) == _data(reference):
            delta = 100 * (mean - base)
    confusion = _read_confusion(found)
    known = {name: found.number(*name.split(".")) for name in SCORES}
    return Quality(
        mean_iou=mean,
        interval=_interval(found.items("mean_iou_ci")),
        delta_points=delta,
        scores={name: value for name, value in known.items() if value is not None},
        classes=_read_classes(found, confusion),
        confusion=confusion,
        captions=_read_captions(found),
        data=found.text("data") or "",
        num_images=found.number("num_images"),
        views=_views(found),
    )


def _data(found: Document) -> tuple[str | None, float | None, str]:
    """Return what must agree for two scores to be compared."""
    return found.text("data"), found.number("num_images"), _views(found)


def _views(found: Document) -> str:
    said = {"test-time augmentation": "tta", "sliding window": "sliding_window"}
    parts = {name: found.value(dict, key) for name, key in said.items()}
    views = [
        f"{name} ({', '.join(f'{k} {v}' for k, v in part.items())})"
        for name, part in parts.items()
        if part
    ]
    threshold = found.number("threshold")
    return "; ".join(views + ([] if threshold is None else [f"threshold {threshold:g}"]))


def _interval(ends: Any) -> tuple[float, float] | None:
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    if not all(isinstance(end, float | int) and 0 <= end <= 1 for end in ends) or ends[0] > ends[1]:
        return None
    return float(ends[0]), float(ends[1])


def _read_classes(found: Document, confusion: Confusion | None) -> tuple[ClassScore, ...]:
    """Return the classes that are present, in the order of the document."""
    intervals = found.value(dict, "class_iou_ci") or {}
    dice, shares = found.numbers("class_dice"), dict[str, float]()
    if confusion is not None and (whole := sum(confusion.totals)):
        sizes = zip(confusion.names, confusion.totals, strict=True)
        shares = {name: total / whole for name, total in sizes}
    return tuple(
        ClassScore(name, iou, _interval(intervals.get(name)), dice.get(name), shares.get(name))
        for name, iou in found.numbers("class_iou").items()
        if iou is not None
    )


def _read_confusion(found: Document) -> Confusion | None:
    """Return the matrix if it is one; a multilabel task has none."""
    names = tuple(str(name) for name in found.items("classes") or found.numbers("class_iou"))
    rows = found.items("confusion")
    if not rows or found.text("task") == "multilabel":
        return None
    if len(rows) != len(names) or not all(_is_row(row, len(names)) for row in rows):
        found.problems.append(f"{found.where}: confusion is no matrix of the classes' pixels.")
        return None
    return Confusion(names, tuple(tuple(row) for row in rows))


def _is_row(row: Any, length: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == length
        and all(type(count) is int and 0 <= count <= _LARGEST_COUNT for count in row)
    )


def _read_captions(found: Document) -> dict[str, str]:
    """Return what to say below the pictures, by how their names begin."""
    captions: dict[str, str] = {}
    for kind in ("worst", "best"):
        for index, plain in enumerate(found.items(kind)):
            where = f"{found.where}, {kind} {index}"
            image = Document(where, plain if isinstance(plain, dict) else {}, found.problems)
            iou, right = image.number("mean_iou"), image.number("pixel_accuracy")
            said = [f"mIoU {iou:.3f}"] if iou is not None else []
            said += [f"{100 * right:.1f} % of its pixels right"] if right is not None else []
            captions[f"{kind}_{index:02d}"] = f"{image.text('name') or '?'}: {', '.join(said)}"
    return captions
