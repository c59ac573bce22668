"""Everything that a report shows, as plain values: one row per model folder, curves, pictures.

Two numbers are put side by side only where they may be: a latency ratio needs the same input, way
and machine (`report.cost`; it says whether both come from one interleaved run), a difference of
mIoU the same data.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import MANIFEST, Checkpoint, ModelFolder, load_folder
from segdeploy.core.manifest import Manifest
from segdeploy.report.cost import Cost, find_damage, read_cost
from segdeploy.report.documents import Document, first_line, read_document
from segdeploy.report.pictures import ALL, FEW, Picture, read_pictures
from segdeploy.report.quality import Quality, read_quality
from segdeploy.report.runlog import Training, read_training

_MOST_PROBLEMS = 40
_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


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
    path: Path
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


def find_runs(path: Path) -> list[Path]:
    """Return the run folders that a path stands for: the `out` of `segdeploy run` has several."""
    if (path / MANIFEST).is_file() or next(path.glob(f"*/{MANIFEST}"), None):
        return [path]
    found = {manifest.parent.parent for manifest in path.glob(f"*/*/{MANIFEST}")}
    return sorted(run for run in found if not run.name.startswith(".")) or [path]


def collect_run(run: Path) -> RunSummary:
    """Read a run folder.

    Raises:
        ArtifactError: If it is no run folder, or no checkpoint or artifact in it is readable.
    """
    problems: list[str] = []
    rows = _read_rows(_find_folders(run, None, problems), problems, has_pictures=True)
    return RunSummary(run.resolve().name, rows, read_training(run, problems), _few(problems))


def collect_figures(run: Path, only: Collection[str] | None = None) -> RunSummary:
    """Read a run folder without pictures and training; `only` names artifacts, default: all.

    Raises:
        ArtifactError: As `collect_run`.
    """
    problems: list[str] = []
    rows = _read_rows(_find_folders(run, only, problems), problems, has_pictures=False)
    return RunSummary(run.resolve().name, rows, Training([], [], []), _few(problems))


def _find_folders(
    run: Path, only: Collection[str] | None, problems: list[str]
) -> list[ModelFolder]:
    if (run / MANIFEST).is_file():
        raise ArtifactError(
            f"{run} is one checkpoint or artifact, not a run.", hint=f"Give {run.parent}."
        )
    if not run.is_dir():
        raise ArtifactError(f"There is no run folder {run}.")
    folders = _load_folders(run, only, problems)
    if not folders:
        found = f" Found instead: {' '.join(problems)}" if problems else ""
        raise ArtifactError(
            f"{run} holds no checkpoint and no artifact.{found}",
            hint="Give the folder that 'segdeploy train' and 'segdeploy export' wrote into.",
        )
    return folders


def _read_rows(folders: list[ModelFolder], problems: list[str], *, has_pictures: bool) -> list[Row]:
    """Read what the stages left in each folder; the first checkpoint is what they refer to."""
    cost = {folder.path: _read_bench(folder, problems) for folder in folders}
    quality = {folder.path: _read(folder, "eval.json", problems) for folder in folders}
    first = next((folder for folder in folders if isinstance(folder, Checkpoint)), None)
    eager = (cost[first.path], first.manifest.io) if first else None
    rows: list[Row] = []
    for folder in folders:
        scored = read_quality(quality[folder.path], quality[first.path] if first else None)
        most = FEW if any(row.pictures for row in rows) else ALL
        name, samples = folder.path.name, folder.path / "samples"
        rows.append(
            Row(
                name=name,
                path=folder.path,
                manifest=folder.manifest,
                is_reference=isinstance(folder, Checkpoint),
                size_mib=folder.size_mib,
                cost=read_cost(cost[folder.path], folder.manifest.io, eager),
                quality=scored,
                closeness=_read_closeness(folder, _read(folder, "parity.json", problems)),
                pictures=read_pictures(samples, name, scored.captions, most, problems)
                if has_pictures
                else (),
            )
        )
    return rows


def _few(problems: list[str]) -> list[str]:
    """Return each problem once, and not more of them than somebody would read."""
    found = list(dict.fromkeys(problems))
    rest = len(found) - _MOST_PROBLEMS
    return [*found[:_MOST_PROBLEMS], *([f"{rest} more problems."] if rest > 0 else [])]


def _load_folders(
    run: Path, only: Collection[str] | None, problems: list[str]
) -> list[ModelFolder]:
    found: list[ModelFolder] = []
    names = sorted(path.parent for path in run.glob(f"*/{MANIFEST}"))
    for path in names:
        if only is not None and path.name not in {"checkpoint", *only}:
            continue
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


def _read_bench(folder: ModelFolder, problems: list[str]) -> Document:
    """Return `bench.json`, or nothing if it is damaged or of another payload."""
    found = _read(folder, "bench.json", problems)
    if damage := find_damage(found):
        problems.append(f"{found.where} is damaged: {damage}.")
        return Document(found.where, None, problems)
    environment = found.plain.get("environment") if found.plain is not None else None
    measured = environment.get("artifact") if isinstance(environment, dict) else None
    if not isinstance(measured, str) or measured == folder.manifest.digest:
        return found
    problems.append(f"{found.where} was measured on another payload; run bench again.")
    return Document(found.where, None, problems)


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
