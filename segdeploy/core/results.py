"""What stages find out: raw evidence is kept, derived numbers are properties.

`to_dict()` is the JSON document of the CLI and of the result file in the artifact folder; its field
names are a contract. A value that the evidence cannot give is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from segdeploy.core import scores
from segdeploy.core.bench_result import BenchResult
from segdeploy.core.errors import ArtifactError
from segdeploy.core.scores import ClassCounts
from segdeploy.core.task import Task

__all__ = [
    "BenchResult",
    "EvalResult",
    "Failure",
    "ImageScore",
    "ParityReport",
    "by_class",
    "known",
    "read_result",
]


@dataclass(frozen=True)
class Failure:
    """A broken rule of a check: its name, the limit and the value found."""

    rule: str
    limit: float
    value: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How a candidate's decisions differ from a reference's; `bool()` means passed.

    Rates are shares of pixels in [0, 1]. `max_abs`, `snr_db`, `cosine` are None where the
    candidate gives labels only. `hops` holds the same comparison against each other known
    relative, e.g. {"parent": ...}. `cases` says which inputs were run. `hint` names the cure of a
    failure, where one is known.
    """

    target: str
    reference: str
    parent: str | None
    num_pixels: int
    flip_rate: float
    hard_flip_rate: float
    excusable_flip_rate: float
    certified_rate: float | None
    class_flip_rate: dict[str, float | None]
    max_abs: float | None
    max_deviation: float | None
    snr_db: float | None
    cosine: float | None
    noise_floor: float
    margin_tolerance: float
    failures: list[Failure] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    hops: dict[str, dict[str, Any]] = field(default_factory=dict)
    hint: str = ""

    @property
    def passed(self) -> bool:
        """True if no rule is broken."""
        return not self.failures

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `verify`."""
        return {"passed": self.passed, **msgspec.to_builtins(self)}


@dataclass(frozen=True)
class ImageScore:
    """One evaluated image: its place among them, name, and scores in [0, 1] (None: unlabelled)."""

    place: int
    name: str
    mean_iou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Quality against labels. `confusion[t, p]` counts pixels of truth t predicted as p (K x K).

    A binary task has K = 2 here: background, then its one class. A multilabel task has such a
    matrix of no and yes for each class, (K, 2, 2), and its scores are those of yes. What the
    confusion matrix cannot give is a field: `mean_iou_ci` and `class_iou_ci` are 95 % bootstrap
    intervals over images; `mae` and `max_f` are a binary task's, where the model gives
    probabilities; the outlines' scores are made on demand. `worst` and `best` are the images of
    lowest and of highest mean IoU, the extreme one first; `images` are all of them in order, and
    no part of the document.
    `tta` ({"scales", "flip"}) and `sliding_window` ({"size", "overlap"}) say how images were run,
    if not as a whole and once; `threshold` is the probability above which a binary or multilabel
    model says yes, if not 0.5. `instances` has, by IoU type, COCO's twelve numbers in [0, 1] (`ap`
    to `ar_large`) and `class_ap`. `artifact` is the digest of the folder that was evaluated.
    """

    target: str
    data: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    num_images: int
    task: Task = Task.MULTICLASS
    mean_iou_ci: tuple[float, float] | None = None
    class_iou_ci: dict[str, tuple[float, float] | None] | None = None
    mae: float | None = None
    max_f: float | None = None
    class_boundary_iou: dict[str, float | None] | None = None
    class_boundary_f: dict[str, float | None] | None = None
    tta: dict[str, Any] | None = None
    sliding_window: dict[str, Any] | None = None
    threshold: float | None = None
    instances: dict[str, dict[str, Any]] | None = None
    artifact: str | None = None
    worst: list[ImageScore] = field(default_factory=list)
    best: list[ImageScore] = field(default_factory=list)
    images: list[ImageScore] = field(default_factory=list)

    @property
    def class_iou(self) -> dict[str, float | None]:
        """Intersection over union per class in [0, 1]; None for a class absent from the labels."""
        return by_class(self.classes, scores.class_iou(self._counts))

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """Share of each class's pixels that were found (recall); None for an absent class."""
        return by_class(self.classes, scores.class_accuracy(self._counts))

    @property
    def class_dice(self) -> dict[str, float | None]:
        """Dice (F1) per class in [0, 1]; None for an absent class."""
        return by_class(self.classes, scores.class_dice(self._counts))

    @property
    def absent_classes(self) -> list[str]:
        """Classes with no labelled pixel; they are not part of any mean."""
        return [name for name, iou in self.class_iou.items() if iou is None]

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the classes that are present in the labels, in [0, 1]."""
        return known(scores.mean_iou(self._counts))

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of labelled pixels that are right, in [0, 1]; of multilabel, of all decisions."""
        right = np.trace(self.confusion, axis1=-2, axis2=-1).sum()
        return known(scores.divide(right, self.confusion.sum()))

    @property
    def mean_accuracy(self) -> float | None:
        """Mean of `class_accuracy` over the classes present, in [0, 1]."""
        return known(scores.mean_accuracy(self._counts))

    @property
    def mean_dice(self) -> float | None:
        """Mean of `class_dice` over the classes present, in [0, 1]."""
        return known(scores.mean_dice(self._counts))

    @property
    def frequency_weighted_iou(self) -> float | None:
        """`class_iou` weighted by each class's share of the labelled pixels, in [0, 1]."""
        return known(scores.frequency_weighted_iou(self._counts))

    @property
    def foreground_iou(self) -> float | None:
        """IoU of a binary task's one class, decided at the threshold; None for other tasks."""
        if self.task is not Task.BINARY:
            return None
        return known(scores.foreground_iou(self._counts))

    @property
    def foreground_dice(self) -> float | None:
        """Dice of a binary task's one class, decided at the threshold; None for other tasks."""
        if self.task is not Task.BINARY:
            return None
        return known(scores.foreground_dice(self._counts))

    @property
    def boundary_iou(self) -> float | None:
        """Mean of `class_boundary_iou` over the classes present; None if not asked for."""
        return _mean(self.class_boundary_iou)

    @property
    def boundary_f(self) -> float | None:
        """Mean of `class_boundary_f` over the classes present; None if not asked for."""
        return _mean(self.class_boundary_f)

    @property
    def _counts(self) -> ClassCounts:
        if self.task is Task.MULTILABEL:
            return ClassCounts.of_yes(self.confusion)
        return ClassCounts.of(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `evaluate`."""
        return {
            "target": self.target,
            "data": self.data,
            "task": str(self.task),
            "mean_iou": self.mean_iou,
            "mean_iou_ci": None if self.mean_iou_ci is None else list(self.mean_iou_ci),
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_dice": self.mean_dice,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "foreground_iou": self.foreground_iou,
            "foreground_dice": self.foreground_dice,
            "mae": self.mae,
            "max_f": self.max_f,
            "boundary_iou": self.boundary_iou,
            "boundary_f": self.boundary_f,
            "class_iou": self.class_iou,
            "class_iou_ci": _plain_intervals(self.class_iou_ci),
            "class_accuracy": self.class_accuracy,
            "class_dice": self.class_dice,
            "class_boundary_iou": self.class_boundary_iou,
            "class_boundary_f": self.class_boundary_f,
            "absent_classes": self.absent_classes,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "num_images": self.num_images,
            "tta": self.tta,
            "sliding_window": self.sliding_window,
            "threshold": self.threshold,
            "instances": self.instances,
            "artifact": self.artifact,
            "worst": msgspec.to_builtins(self.worst),
            "best": msgspec.to_builtins(self.best),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> EvalResult:
        """Read the document back; what the confusion matrix gives is computed anew."""
        interval, by_name = plain.get("mean_iou_ci"), plain.get("class_iou_ci")
        names = (
            "mae", "max_f", "class_boundary_iou", "class_boundary_f", "tta", "sliding_window",
            "threshold", "instances", "artifact",
        )  # fmt: skip
        others: dict[str, Any] = {name: plain.get(name) for name in names}
        return cls(
            target=plain["target"],
            data=plain["data"],
            classes=tuple(plain["classes"]),
            confusion=np.asarray(plain["confusion"], dtype=np.int64),
            num_images=plain["num_images"],
            task=Task(plain.get("task", Task.MULTICLASS)),
            mean_iou_ci=_interval(interval),
            class_iou_ci=by_name and {name: _interval(ends) for name, ends in by_name.items()},
            worst=[ImageScore(**image) for image in plain.get("worst", [])],
            best=[ImageScore(**image) for image in plain.get("best", [])],
            **others,
        )


def _interval(ends: list[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (ends[0], ends[1])


def _plain_intervals(
    by_name: dict[str, tuple[float, float] | None] | None,
) -> dict[str, list[float] | None] | None:
    if by_name is None:
        return None
    return {name: None if ends is None else list(ends) for name, ends in by_name.items()}


def known(score: NDArray[np.float64] | float) -> float | None:
    """Return one score, None where it is NaN."""
    return None if np.isnan(score) else float(score)


def by_class(
    classes: tuple[str, ...], class_scores: NDArray[np.float64]
) -> dict[str, float | None]:
    """Return scores (K,) by class name, None where NaN."""
    return {name: known(score) for name, score in zip(classes, class_scores, strict=True)}


def _mean(class_scores: dict[str, float | None] | None) -> float | None:
    present = [score for score in (class_scores or {}).values() if score is not None]
    return float(np.mean(present)) if present else None


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a result file's document, or None if the stage has not been run.

    Raises:
        ArtifactError: If the file is there but damaged.
    """
    try:
        plain = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}.", hint="Run the stage again."
        ) from error
    if not isinstance(plain, dict):
        raise ArtifactError(f"{path} is not a result document.", hint="Run the stage again.")
    return plain
