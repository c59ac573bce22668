"""What a report shows of `bench.json`, and which latencies may be compared with each other.

Two latencies are comparable if the input, the measured way (from a tensor to logits, from an image
to its label map, ...) and the machine's fingerprint agree. An artifact of low-resolution logits is
timed up to its labels: that is comparable to one that gives labels. From image to label map the
contract does not matter: every artifact does the same work then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median
from typing import Any

from segdeploy.core.contract import IoContract
from segdeploy.measure.fingerprint import fingerprint_difference
from segdeploy.report.documents import Document, is_number
from segdeploy.report.worth import median_interval


@dataclass(frozen=True)
class Conditions:
    """What must agree for two latencies to be compared; all in words but the environment."""

    input: str = ""
    measured: str = ""
    threads: str = ""
    device: str = ""
    cpu: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def words(self) -> tuple[str, ...]:
        """The ones that people look for first."""
        found = (self.input, self.threads, self.device, self.cpu, self.measured)
        return tuple(word for word in found if word)

    def differences(self, other: Conditions) -> list[str]:
        """Return one line for each thing that differs; none if latencies can be compared."""
        mine = {"input": self.input, "measured": self.measured}
        theirs = {"input": other.input, "measured": other.measured}
        found = [
            f"{name}: {mine[name] or 'unknown'} against {theirs[name] or 'unknown'}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        return found + fingerprint_difference(self.environment, other.environment)


@dataclass(frozen=True)
class Cost:
    """What `bench` found; `ratio` is to eager PyTorch, None where they cannot be compared.

    `interval_ms` is of the median (`latency_interval`). `conditions` is None without a measurement.
    """

    p50_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    p90_ms: float | None = None
    throughput_img_s: float | None = None
    peak_memory_mib: float | None = None
    ratio: float | None = None
    is_same_run: bool = True
    conditions: Conditions | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def read_cost(
    found: Document, io: IoContract, eager: tuple[Document, IoContract] | None = None
) -> Cost:
    """Read `bench.json`; `eager` is that of the checkpoint, for the ratio."""
    if not found.is_present:
        return Cost()
    p50, ratio, is_same_run = found.number("latency_ms", "p50"), None, True
    conditions = read_conditions(found, io)
    if eager and eager[0].is_present and not conditions.differences(read_conditions(*eager)):
        base = eager[0].number("latency_ms", "p50")
        ratio = p50 / base if p50 is not None and base else None
        runs = {d.text("environment", "bench_run") for d in (found, eager[0])}
        is_same_run = len(runs) == 1 and None not in runs
    return Cost(
        p50_ms=p50,
        interval_ms=_read_interval(found),
        p90_ms=found.number("latency_ms", "p90"),
        throughput_img_s=found.number("throughput_img_s"),
        peak_memory_mib=found.number("peak_memory_mib"),
        ratio=ratio,
        is_same_run=is_same_run,
        conditions=conditions,
        environment=found.value(dict, "environment") or {},
    )


def find_damage(found: Document) -> str:
    """Return what of a `bench.json` no bench can have found; empty if nothing."""
    plain = found.plain or {}
    latency, environment = plain.get("latency_ms"), plain.get("environment")
    latency = latency if isinstance(latency, dict) else {}
    values = {f"latency_ms.{name}": latency.get(name) for name in ("p50", "p90")}
    values |= {name: plain.get(name) for name in ("throughput_img_s", "peak_memory_mib")}
    wrong = [name for name, v in values.items() if v is not None and not _is_positive(v)]
    for name in ("samples_ms", "input_shape"):
        each = plain.get(name, [])
        if not isinstance(each, list) or not all(map(_is_positive, each)):
            wrong.append(name)
    if environment is not None and not isinstance(environment, dict):
        wrong.append("environment")
    return f"{wrong[0]} is no value of a bench" if wrong else ""


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _read_interval(found: Document) -> tuple[float, float] | None:
    """Return an interval of the median that covers its order statistics, blocks and launches."""
    samples = [s for s in found.items("samples_ms") if is_number(s)]
    return latency_interval(
        samples, found.items("environment", "block_sizes"), found.items("launches")
    )


def latency_interval(
    samples: Sequence[float], block_sizes: Sequence[Any] = (), launches: Sequence[Any] = ()
) -> tuple[float, float] | None:
    """Return a 95 % interval of the median, at least as wide as that of the block medians.

    Neighbouring calls are alike, so that of the calls alone is too narrow: blocks stand apart by a
    turn of all artifacts, launches are processes of their own. Of a few launches it is the range of
    their medians, since no order statistics of them give 95 %.

    Args:
        samples: Of all launches, in order.
        block_sizes: How many samples each block has.
        launches: How many samples each launch has.
    """
    found = [median_interval(samples), median_interval(_medians(samples, block_sizes))]
    if len(medians := _medians(samples, launches)) > 1:
        found.append(median_interval(medians) or (min(medians), max(medians)))
    known = [interval for interval in found if interval is not None]
    if not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _medians(samples: Sequence[float], sizes: Sequence[Any]) -> list[float]:
    """Return the median of each part; none if the sizes are not those of the samples."""
    counts = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(counts) != len(sizes) or sum(counts) != len(samples):
        return []
    ends = list(accumulate(counts))
    return [median(samples[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def read_conditions(found: Document, io: IoContract) -> Conditions:
    """Return under which conditions a latency was measured.

    The input is (pixels of the batch), since a `tensor` and an `image` contract differ in layout.
    """
    sides = [str(side) for side in found.items("input_shape")]
    if len(sides) == 4:
        sides = [sides[0], *(sides[1:3] if sides[3] in {"1", "3", "4"} else sides[2:4])]
    threads = found.number("environment", "threads")
    measured = found.text("environment", "measured") or f"{io.input} to {io.output}"
    return Conditions(
        input="x".join(sides),
        measured=measured.partition(" by way of ")[0],
        threads=f"{threads:.0f} threads" if threads is not None else "",
        device=found.text("environment", "device") or "",
        cpu=found.text("environment", "cpu") or "",
        environment=_orderly(found.value(dict, "environment") or {}),
    )


def _orderly(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment whose parts have the types that a fingerprint takes."""
    runtime, gpus = environment.get("runtime"), environment.get("gpus")
    versions = runtime.get("versions") if isinstance(runtime, dict) else None
    variables, system = environment.get("variables"), environment.get("os")
    return {
        **environment,
        "os": system if isinstance(system, str) else None,
        "runtime": {"versions": versions if isinstance(versions, dict) else {}},
        "variables": variables if isinstance(variables, dict) else {},
        "gpus": [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else [],
    }
