"""Everything that a report shows, as plain values: one row per model folder, curves, pictures.

Two numbers are put side by side only where they may be: a latency ratio needs the same input,
device and threads (and says whether both come from one interleaved run), a difference of mIoU the
same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import MANIFEST, Checkpoint, ModelFolder, load_folder
from segdeploy.core.manifest import Manifest
from segdeploy.report.documents import Document, first_line, is_number, read_document
from segdeploy.report.pictures import ALL, FEW, Picture, read_pictures
from segdeploy.report.quality import Quality, read_quality
from segdeploy.report.runlog import Training, read_training
from segdeploy.report.worth import median_interval

_MOST_PROBLEMS = 40
_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Cost:
    """What `bench` found; `ratio` is to eager PyTorch, None where they cannot be compared.

    `interval_ms` is of the median, from its samples.
    """

    p50_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    p90_ms: float | None = None
    throughput_img_s: float | None = None
    peak_memory_mib: float | None = None
    ratio: float | None = None
    is_same_run: bool = True
    conditions: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Closeness:
    """What `verify` found; rates are shares of pixels in [0, 1]."""

    verdict: str = "not verified"
    flip_rate: float | None = None
    hard_flip_rate: float | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One model folder of the run."""

    name: str
    manifest: Manifest
    is_reference: bool
    size_mib: float
    cost: Cost
    quality: Quality
    closeness: Closeness
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class RunSummary:
    """A run as the report shows it: the checkpoint first, then the artifacts."""

    name: str
    rows: list[Row]
    training: Training
    problems: list[str]


def collect_run(run: Path) -> RunSummary:
    """Read a run folder.

    Raises:
        ArtifactError: If it is no run folder, or no checkpoint or artifact in it is readable.
    """
    if (run / MANIFEST).is_file():
        raise ArtifactError(
            f"{run} is one checkpoint or artifact, not a run.", hint=f"Give {run.parent}."
        )
    if not run.is_dir():
        raise ArtifactError(f"There is no run folder {run}.")
    problems: list[str] = []
    folders = _load_folders(run, problems)
    if not folders:
        found = f" Found instead: {' '.join(problems)}" if problems else ""
        raise ArtifactError(
            f"{run} holds no checkpoint and no artifact.{found}",
            hint="Give the folder that 'segdeploy train' and 'segdeploy export' wrote into.",
        )
    cost = {folder.path: _read(folder, "bench.json", problems) for folder in folders}
    quality = {folder.path: _read(folder, "eval.json", problems) for folder in folders}
    first = next((f.path for f in folders if isinstance(f, Checkpoint)), None)
    eager, reference = (documents.get(first) if first else None for documents in (cost, quality))
    rows: list[Row] = []
    for folder in folders:
        scored = read_quality(quality[folder.path], reference)
        most = FEW if any(row.pictures for row in rows) else ALL
        name, samples = folder.path.name, folder.path / "samples"
        rows.append(
            Row(
                name=name,
                manifest=folder.manifest,
                is_reference=isinstance(folder, Checkpoint),
                size_mib=folder.size_mib,
                cost=_read_cost(cost[folder.path], eager),
                quality=scored,
                closeness=_read_closeness(folder, _read(folder, "parity.json", problems)),
                pictures=read_pictures(samples, name, scored.captions, most, problems),
            )
        )
    training = read_training(run, problems)
    return RunSummary(run.resolve().name, rows, training, _few(problems))


def _few(problems: list[str]) -> list[str]:
    """Return each problem once, and not more of them than somebody would read."""
    found = list(dict.fromkeys(problems))
    rest = len(found) - _MOST_PROBLEMS
    return [*found[:_MOST_PROBLEMS], *([f"{rest} more problems."] if rest > 0 else [])]


def _load_folders(run: Path, problems: list[str]) -> list[ModelFolder]:
    found: list[ModelFolder] = []
    names = sorted(path.parent for path in run.glob(f"*/{MANIFEST}"))
    for path in names:
        is_copy = path.name == "last" and (run / "checkpoint" / MANIFEST).is_file()
        if path.name.startswith(".") or is_copy:
            continue
        try:
            found.append(load_folder(path))
        except ArtifactError as error:
            problems.append(f"{path.name} is left out: {first_line(error)}")
    return sorted(found, key=_order)


def _order(folder: ModelFolder) -> tuple[bool, str, int, str]:
    backend, _, precision = folder.name.rpartition("-")
    known = _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)
    return (not isinstance(folder, Checkpoint), backend, known, folder.path.name)


def _read(folder: ModelFolder, name: str, problems: list[str]) -> Document:
    return read_document(folder.path / name, f"{folder.path.name}/{name}", problems)


def _read_cost(found: Document, eager: Document | None) -> Cost:
    if not found.is_present:
        return Cost()
    p50, ratio, is_same_run = found.number("latency_ms", "p50"), None, True
    if eager is not None and eager.is_present and _conditions(eager) == _conditions(found):
        base = eager.number("latency_ms", "p50")
        ratio = p50 / base if p50 is not None and base else None
        runs = {d.text("environment", "bench_run") for d in (found, eager)}
        is_same_run = len(runs) == 1 and None not in runs
    return Cost(
        p50_ms=p50,
        interval_ms=median_interval([s for s in found.items("samples_ms") if is_number(s)]),
        p90_ms=found.number("latency_ms", "p90"),
        throughput_img_s=found.number("throughput_img_s"),
        peak_memory_mib=found.number("peak_memory_mib"),
        ratio=ratio,
        is_same_run=is_same_run,
        conditions=_conditions(found),
        environment=found.value(dict, "environment") or {},
    )


def _conditions(found: Document) -> tuple[str, ...]:
    """Return what must agree for two latencies to be compared, in words.

    The input is (pixels of the batch), since a `tensor` and an `image` contract differ in layout.
    """
    sides = [str(side) for side in found.items("input_shape")]
    if len(sides) == 4:
        sides = [sides[0], *(sides[1:3] if sides[3] in {"1", "3", "4"} else sides[2:4])]
    threads = found.number("environment", "threads")
    return (
        "x".join(sides),
        f"{threads:.0f} threads" if threads is not None else "",
        found.text("environment", "device") or "",
        found.text("environment", "cpu") or "",
        found.text("environment", "measured") or "",
    )


def _read_closeness(folder: ModelFolder, found: Document) -> Closeness:
    if isinstance(folder, Checkpoint):
        return Closeness("reference")
    passed = found.value(bool, "passed")
    if passed is None:
        passed = folder.manifest.passed
    failures = []
    for index, plain in enumerate(found.items("failures")):
        failure = Document(
            f"{found.where}, failure {index + 1}", plain if isinstance(plain, dict) else {},
            found.problems,
        )  # fmt: skip
        limit, value = failure.number("limit"), failure.number("value")
        rule = failure.text("rule") or "unnamed rule"
        failures.append(f"{rule}: {_short(value)}, limit {_short(limit)}")
    return Closeness(
        "not verified" if passed is None else "passed" if passed else "failed",
        found.number("flip_rate"),
        found.number("hard_flip_rate"),
        tuple(failures),
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
