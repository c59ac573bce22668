"""`bench.jsonl`: what each commit cost, one line for each artifact and bench.

Lines are appended under a lock, so that several jobs may share a file. The machine's fingerprint
leaves the versions of runtimes out here (they stand in the entry): a runtime's upgrade is one of
the things that make a step. A bench counts once: noted twice, it would weigh as two runs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.files import append_whole, digest_of, write_errors
from segdeploy.core.folder import load_folder
from segdeploy.core.results import BenchResult, read_result
from segdeploy.measure.fingerprint import fingerprint
from segdeploy.workflows.commits import current_branch, current_commit

_DAMAGED = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, msgspec.ValidationError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One artifact's bench. Times are in ms; `machine` is the digest of the fingerprint.

    `p50_ci_ms` is the 95 % interval of the median within this bench: it knows nothing of the
    difference between launches, and is no test between two entries.
    """

    time: str
    commit: str | None
    branch: str | None
    model: str
    target: str
    artifact: str
    digest: str
    machine: str
    cpu: str | None
    input_shape: tuple[int, ...]
    threads: int | None
    measured: str
    p50_ms: float
    p50_ci_ms: tuple[float, float] | None
    num_samples: int
    min_ms: float
    mean_ms: float
    spread_ms: float
    peak_memory_mib: float | None
    versions: dict[str, str] = field(default_factory=dict)
    bench_run: str | None = None
    schema_version: int = 1

    @property
    def bench(self) -> tuple[str, ...] | None:
        """What two entries of one and the same bench share; None where it has no name."""
        if self.bench_run is None:
            return None
        return (self.bench_run, self.model, self.artifact, self.digest)

    @property
    def series(self) -> tuple[Any, ...]:
        """What must be equal for two entries to be compared."""
        return (
            self.model, self.artifact, self.machine, self.input_shape, self.threads, self.measured,
        )  # fmt: skip


def history_entry(result: BenchResult, model: str, repository: Path | None = None) -> HistoryEntry:
    """Return the entry of a bench result, by the commit that is checked out.

    Raises:
        DataError: If the result has no samples, or some that are no times.
    """
    environment, path = result.environment, Path(result.path)
    samples = np.asarray(result.samples_ms, np.float64)
    if not len(samples):
        raise DataError(f"The bench of {path} has no samples.", hint="Run the bench again.")
    if not (np.isfinite(samples) & (samples > 0)).all():
        raise DataError(
            f"The bench of {path} has samples that are no times.", hint="Run the bench again."
        )
    low, high = np.percentile(samples, (25, 75))
    return HistoryEntry(
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        commit=current_commit(repository),
        branch=current_branch(repository),
        model=model,
        target=result.target,
        artifact=path.name,
        digest=environment.get("artifact") or "",
        machine=machine_digest(environment),
        cpu=environment.get("cpu"),
        input_shape=tuple(result.input_shape),
        threads=environment.get("threads"),
        measured=str(environment.get("measured")),
        p50_ms=float(np.median(samples)),
        p50_ci_ms=result.latency_ci_ms["p50"],
        num_samples=len(samples),
        min_ms=float(samples.min()),
        mean_ms=float(samples.mean()),
        spread_ms=float(high - low),
        peak_memory_mib=result.peak_memory_mib,
        versions=fingerprint(environment)["runtimes"],
        bench_run=environment.get("bench_run"),
    )


def machine_digest(environment: Mapping[str, Any]) -> str:
    """Return 16 letters that name a machine, whatever versions run on it."""
    found = fingerprint(environment)
    return digest_of({name: v for name, v in found.items() if name != "runtimes"})[:16]


def entry_of_folder(path: Path) -> HistoryEntry:
    """Return the entry of a folder's `bench.json`; its run folder's name is the model's.

    Raises:
        ArtifactError: If it is no model folder, or has no `bench.json` or a damaged one.
        DataError: As `history_entry`.
    """
    folder = load_folder(path, check_files=False)
    plain = read_result(path / "bench.json")
    if plain is None:
        raise ArtifactError(f"{path} has no bench.json.", hint=f"Run: segdeploy bench {path}")
    try:
        result = BenchResult.from_dict({**plain, "path": str(folder.path)})
        entry = history_entry(result, folder.path.resolve().parent.name)
        # As a reader will see it, who would leave out what has a wrong type.
        return msgspec.convert(msgspec.to_builtins(entry), HistoryEntry)
    except _DAMAGED as error:
        raise ArtifactError(
            f"{path / 'bench.json'} is not the result of a bench: {error!r}.",
            hint=f"Run: segdeploy bench {path}",
        ) from error


def append_history(file: Path, entries: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """Add lines to a history; the file and its folder are made if absent.

    Returns:
        The entries that were left out, since their bench stands there already.

    Raises:
        ArtifactError: If it cannot be written.
    """
    with write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            there = stream.read()
            known = {entry.bench for entry in _decode(there.splitlines())}
            added: list[HistoryEntry] = []
            left_out: list[HistoryEntry] = []
            for entry in entries:
                is_known = entry.bench is not None and entry.bench in known
                (left_out if is_known else added).append(entry)
                known.add(entry.bench)
            # A line that a killed job left unfinished stays alone.
            start = b"\n" if there and not there.endswith(b"\n") else b""
            lines = (msgspec.json.encode(entry) + b"\n" for entry in added)
            append_whole(stream, start + b"".join(lines))
    return left_out


def load_history(file: Path) -> tuple[list[HistoryEntry], int]:
    """Return the entries of a file, oldest first, and the number of lines that are none.

    Their order is that of their times: files of several jobs that were merged have another one.

    Raises:
        DataError: If it cannot be read, or no line of it is an entry.
    """
    try:
        lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(
            f"Cannot read {file}: {error.strerror or error}.",
            hint='Set [history] file = "bench.jsonl", or add a bench: '
            "segdeploy history FILE --add RUN/onnx-fp32.",
        ) from error
    entries = _decode(lines)
    if lines and not entries:
        raise DataError(f"No line of {file} is a history entry.")
    return sorted(entries, key=lambda entry: entry.time), len(lines) - len(entries)


def _decode(lines: Sequence[bytes]) -> list[HistoryEntry]:
    """Return the lines that are entries."""
    entries = []
    for line in lines:
        try:
            entry = msgspec.json.decode(line, type=HistoryEntry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if entry.p50_ms > 0:
            entries.append(entry)
    return entries
