"""What `bench` finds out about one artifact: raw samples are kept, the rest is derived from them.

Documents of earlier versions lack the later fields; they are read all the same, as "not measured".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segdeploy.core.percentile import percentile_interval

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
_COLD = ("process", "load", "first_run", "total")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Cost of one artifact: raw samples (ms per call of one batch) and the environment.

    Attributes:
        target: E.g. `onnx-fp32`.
        path: The folder.
        samples_ms: In the order they were taken.
        batch_size: Images per call.
        input_shape: Of one batch.
        peak_memory_mib: Largest of the launches; None where it is not known.
        environment: The machine, the settings, `warnings`.
        starts_s: When each sample began, in seconds since the run began.
        launches: Number of samples of each launch (a fresh process), in order.
        launch_memory_mib: Peak memory of each launch.
        cold_starts_ms: Of each launch: `process`, `load`, `first_run` and `total`, in ms.
        warm_ups: Of each launch: how long it took until latency was steady (`measure.steady`).
        region_samples_ms: Of each region, what it took of each sample; empty if not asked for.
        throughput: Rows {batch_size, streams, images, seconds, img_s}; empty if not asked for.
        sustained: The first minute against the last; None if not asked for.
    """

    target: str
    path: str
    samples_ms: list[float]
    batch_size: int
    input_shape: tuple[int, ...]
    peak_memory_mib: float | None
    environment: dict[str, Any]
    starts_s: list[float] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)
    launch_memory_mib: list[float | None] = field(default_factory=list)
    cold_starts_ms: list[dict[str, float | None]] = field(default_factory=list)
    warm_ups: list[dict[str, Any]] = field(default_factory=list)
    region_samples_ms: dict[str, list[float]] = field(default_factory=dict)
    throughput: list[dict[str, Any]] = field(default_factory=list)
    sustained: dict[str, Any] | None = None

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
    def latency_ci_ms(self) -> dict[str, tuple[float, float] | None]:
        """95 % intervals of p50, p90 and p99 in ms; None where the samples are too few."""
        return {
            name: percentile_interval(self.samples_ms, percent)
            for name, percent in _PERCENTILES.items()
        }

    @property
    def throughput_img_s(self) -> float | None:
        """Images per second at the median latency, one call after the other."""
        median = self.latency_ms["p50"]
        return 1000 * self.batch_size / median if median else None

    @property
    def cold_start_ms(self) -> dict[str, float | None] | None:
        """Medians over the launches, in ms; None if it was not measured."""
        if not self.cold_starts_ms:
            return None
        return {name: _median([each[name] for each in self.cold_starts_ms]) for name in _COLD}

    @property
    def regions_ms(self) -> dict[str, float] | None:
        """Where the time of a typical call goes, in ms: regions, `end_to_end`, `remainder`.

        Means over the middle fifth of the calls by duration, so that `end_to_end` is the median
        and the books close: medians of single regions add up to nothing in particular.
        """
        if not self.region_samples_ms or not self.samples_ms:
            return None
        order = np.argsort(self.samples_ms, kind="stable")
        size = len(order)
        middle = order[int(size * 0.4) : max(int(size * 0.6), int(size * 0.4) + 1)]
        whole = float(np.asarray(self.samples_ms)[middle].mean())
        found = {
            name: float(np.asarray(ms)[middle].mean())
            for name, ms in self.region_samples_ms.items()
        }
        return {**found, "end_to_end": whole, "remainder": whole - sum(found.values())}

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `bench`."""
        return {
            "target": self.target,
            "path": self.path,
            "latency_ms": self.latency_ms,
            "latency_ci_ms": {n: ends and list(ends) for n, ends in self.latency_ci_ms.items()},
            "throughput_img_s": self.throughput_img_s,
            "throughput": self.throughput,
            "peak_memory_mib": self.peak_memory_mib,
            "cold_start_ms": self.cold_start_ms,
            "regions_ms": self.regions_ms,
            "sustained": self.sustained,
            "batch_size": self.batch_size,
            "input_shape": list(self.input_shape),
            "launches": self.launches,
            "launch_memory_mib": self.launch_memory_mib,
            "cold_starts_ms": self.cold_starts_ms,
            "warm_ups": self.warm_ups,
            "samples_ms": self.samples_ms,
            "starts_s": self.starts_s,
            "region_samples_ms": self.region_samples_ms,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> BenchResult:
        """Read the document back, also one of an earlier version."""
        names = ("target", "path", "samples_ms", "batch_size", "peak_memory_mib", "environment")
        later = (
            "starts_s", "launches", "launch_memory_mib", "cold_starts_ms", "warm_ups",
            "region_samples_ms", "throughput", "sustained",
        )  # fmt: skip
        given = {n: plain[n] for n in names} | {n: plain[n] for n in later if n in plain}
        return cls(input_shape=tuple(plain["input_shape"]), **given)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
