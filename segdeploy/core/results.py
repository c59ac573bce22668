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

from segdeploy.core.errors import ArtifactError


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
    relative, e.g. {"parent": ...}. `cases` says which inputs were run.
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

    @property
    def passed(self) -> bool:
        """True if no rule is broken."""
        return not self.failures

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `verify`."""
        return {"passed": self.passed, **msgspec.to_builtins(self)}


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Quality against labels. `confusion[t, p]` counts pixels of truth t predicted as p (K x K).

    A binary task has K = 2 here: background, then its one class.
    """

    target: str
    data: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    num_images: int

    @property
    def class_iou(self) -> dict[str, float | None]:
        """Intersection over union per class in [0, 1]; None for a class absent from the labels."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return self._where_present(hits, union)

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """Share of each class's pixels that were found (recall); None for an absent class."""
        return self._where_present(np.diag(self.confusion), self.confusion.sum(1))

    def _where_present(
        self, part: NDArray[np.int64], whole: NDArray[np.int64]
    ) -> dict[str, float | None]:
        present = self.confusion.sum(1) > 0
        return {
            name: float(part[k] / whole[k]) if present[k] else None
            for k, name in enumerate(self.classes)
        }

    @property
    def absent_classes(self) -> list[str]:
        """Classes with no labelled pixel; they are not part of the mean."""
        return [name for name, iou in self.class_iou.items() if iou is None]

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the classes that are present in the labels, in [0, 1]."""
        values = [v for v in self.class_iou.values() if v is not None]
        return float(np.mean(values)) if values else None

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of labelled pixels that are right, in [0, 1]."""
        total = int(self.confusion.sum())
        return float(np.diag(self.confusion).sum() / total) if total else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `evaluate`."""
        return {
            "target": self.target,
            "data": self.data,
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "class_iou": self.class_iou,
            "class_accuracy": self.class_accuracy,
            "absent_classes": self.absent_classes,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "num_images": self.num_images,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> EvalResult:
        """Read the document back; derived numbers are computed anew from the confusion matrix."""
        return cls(
            target=plain["target"],
            data=plain["data"],
            classes=tuple(plain["classes"]),
            confusion=np.asarray(plain["confusion"], dtype=np.int64),
            num_images=plain["num_images"],
        )


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Cost of one artifact: raw samples (ms per call of one batch) and the environment."""

    target: str
    path: str
    samples_ms: list[float]
    batch_size: int
    input_shape: tuple[int, ...]
    peak_memory_mib: float | None
    environment: dict[str, Any]

    def percentile_ms(self, percent: float) -> float | None:
        """Return a latency percentile in ms, or None if the samples are too few to show it.

        The p-th percentile needs at least 1 / (1 - p) samples, so that one lies above it.
        """
        if len(self.samples_ms) * (100 - percent) < 100:
            return None
        return float(np.percentile(self.samples_ms, percent))

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """p50, p90, p99, mean and min of the samples, in ms."""
        if not self.samples_ms:
            return dict.fromkeys(("p50", "p90", "p99", "mean", "min"))
        return {
            "p50": float(np.median(self.samples_ms)),
            "p90": self.percentile_ms(90),
            "p99": self.percentile_ms(99),
            "mean": float(np.mean(self.samples_ms)),
            "min": float(np.min(self.samples_ms)),
        }

    @property
    def throughput_img_s(self) -> float | None:
        """Images per second at the median latency."""
        median = self.latency_ms["p50"]
        return 1000 * self.batch_size / median if median else None

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `bench`."""
        return {
            "target": self.target,
            "path": self.path,
            "latency_ms": self.latency_ms,
            "throughput_img_s": self.throughput_img_s,
            "peak_memory_mib": self.peak_memory_mib,
            "batch_size": self.batch_size,
            "input_shape": list(self.input_shape),
            "samples_ms": self.samples_ms,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> BenchResult:
        """Read the document back."""
        names = ("target", "path", "samples_ms", "batch_size", "peak_memory_mib", "environment")
        return cls(input_shape=tuple(plain["input_shape"]), **{n: plain[n] for n in names})


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
