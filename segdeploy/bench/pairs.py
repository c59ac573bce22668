"""Launches of two artifacts side by side: fresh processes, blocks in ABBA order, the idle one held.

A process that waits may spin: ONNX Runtime's idle threads made the ratio of two identical artifacts
vary by 15 % from launch to launch, and by 0.8 % with the idle side stopped (SIGSTOP; LRASPP at
224x224, 2 threads on 2 cores). Which side starts first changes from launch to launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Self

import numpy as np

from segdeploy.bench.child import BenchChild
from segdeploy.bench.inputs import make_batch
from segdeploy.core.errors import (
    BackendUnavailableError,
    ConfigError,
    GateError,
    SegDeployError,
)
from segdeploy.core.folder import ModelFolder

BLOCK_S = 0.1
WARM_UP_S = 0.1
NUM_PAIRS = 4
"""Blocks of each side in a launch: A B, B A, A B, B A."""
_OPEN_LIMIT_S = 600.0
_PATIENCE = 20.0  # A candidate may take so many times what the baseline took, and GRACE_S beyond.
GRACE_S = 20.0


class CandidateBrokenError(GateError):
    """The candidate crashed, hung or failed; never the baseline."""


@dataclass
class Side:
    """What one process showed in one launch.

    `blocks_ms` are the calls of each block in ms, in the order they ran; `throughput_img_s` one
    number a block.
    """

    blocks_ms: list[list[float]] = field(default_factory=list)
    throughput_img_s: list[float] = field(default_factory=list)
    memory_mib: float | None = None
    cold_start_ms: float | None = None


@dataclass
class Launch:
    """One launch: the candidate, and the baseline beside it (None where it is a stored result)."""

    candidate: Side
    baseline: Side | None = None


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """How a launch is run; `size` is (H, W), `streams` 0 leaves throughput out."""

    size: tuple[int, int]
    batch_size: int = 1
    threads: int = 1
    device: str = "cpu"
    streams: int = 0


Start = Callable[[ModelFolder, int, float], BenchChild]


class PairSampler:
    """Runs launches; a context, so that the batches' files go away.

    Args:
        baseline: Its folder, or None if only the candidate runs.
        candidate: Its folder.
        plan: How.
        start: Starts the candidate's worker for (folder, threads, limit in seconds).
    """

    def __init__(
        self,
        baseline: ModelFolder | None,
        candidate: ModelFolder,
        plan: PairPlan,
        *,
        start: Start = BenchChild,
    ) -> None:
        self._baseline, self._candidate = baseline, candidate
        self._plan = plan
        self._start = start
        self._longest_s = 0.0
        self._stack = ExitStack()
        self._files: dict[bool, Path] = {}
        self.launches: list[Launch] = []
        self.runtime: dict[str, Any] = {}

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="segdeploy-gate-")))
        for is_candidate, each in ((False, self._baseline), (True, self._candidate)):
            if each is not None:
                batch = make_batch(each.manifest, self._plan.size, self._plan.batch_size)
                self._files[is_candidate] = folder / f"{is_candidate}.npy"
                np.save(self._files[is_candidate], batch)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def sample(self) -> Launch:
        """Run one launch and keep it.

        Raises:
            CandidateBrokenError: If the candidate crashed, hung or failed.
            SegDeployError: If the baseline did, or a runtime is missing here.
        """
        with ExitStack() as stack:
            workers = []
            # The baseline first in the first launch: it says how long an answer may take.
            for is_candidate in (False, True) if len(self.launches) % 2 == 0 else (True, False):
                if is_candidate in self._files:
                    worker = stack.enter_context(self._start_worker(is_candidate=is_candidate))
                    workers.append(worker)
                    worker.open(self._files[is_candidate])
                    self._note(worker)
            _alternate(workers, _Worker.sample)
            if self._plan.streams:
                _alternate(workers, _Worker.measure_throughput)
            for worker in workers:
                worker.finish()
                self._note(worker)
        sides = {worker.is_candidate: worker.side for worker in workers}
        launch = Launch(sides[True], sides.get(False))
        self.launches.append(launch)
        return launch

    def _start_worker(self, *, is_candidate: bool) -> _Worker:
        folder = self._candidate if is_candidate else self._baseline
        if folder is None:
            raise RuntimeError("no baseline to start")  # Cannot be: it has no file either.
        limit_s = _OPEN_LIMIT_S
        if is_candidate and self._baseline is not None:
            limit_s = GRACE_S + _PATIENCE * self._longest_s
        start = self._start if is_candidate else BenchChild
        return _Worker(folder, self._plan, start, limit_s, is_candidate=is_candidate)

    def _note(self, worker: _Worker) -> None:
        if not worker.is_candidate:
            self._longest_s = max(self._longest_s, worker.longest_s)
        self.runtime["candidate" if worker.is_candidate else "baseline"] = worker.runtime


def _alternate(workers: Sequence[_Worker], step: Callable[[_Worker], None]) -> None:
    """Let each work in turn, the others stopped: A B, B A, A B, B A."""
    for pair in range(NUM_PAIRS):
        for worker in workers if pair % 2 == 0 else workers[::-1]:
            with worker.awake():
                step(worker)


class _Worker:
    """One process of one launch; stopped but where it is asked."""

    def __init__(
        self, folder: ModelFolder, plan: PairPlan, start: Start, limit_s: float,
        *, is_candidate: bool,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._started = monotonic()
        self._path = str(folder.path.resolve())
        self.is_candidate = is_candidate
        self.longest_s = 0.0
        self.runtime: dict[str, Any] = {}
        self.side = Side()
        self._child = start(folder, plan.threads, limit_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.stop()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the process run within this context only."""
        self._child.resume()
        try:
            yield
        finally:
            self._child.pause()

    def open(self, batch: Path) -> None:
        """Start up to the first inference, and warm up."""
        plan = self._plan
        answer = self._ask(
            "open", path=self._path, device=plan.device, threads=plan.threads, batch=str(batch),
            end_to_end=False,
        )  # fmt: skip
        self.side.cold_start_ms = 1000 * (monotonic() - self._started)
        self.runtime = answer["runtime"]
        self._ask("sample", seconds=WARM_UP_S)
        self._child.pause()

    def sample(self) -> None:
        """Run a block."""
        self.side.blocks_ms.append(self._ask("sample", seconds=BLOCK_S)["samples_ms"])

    def measure_throughput(self) -> None:
        """Run a block of several streams at once."""
        found = self._ask("throughput", seconds=BLOCK_S, streams=self._plan.streams)
        self.side.throughput_img_s.append(found["images"] / found["seconds"])

    def finish(self) -> None:
        """Free the session and note the peak memory."""
        with self.awake():
            self.side.memory_mib = self._ask("finish")["peak_memory_mib"]

    def _ask(self, do: str, **details: Any) -> dict[str, Any]:
        start = monotonic()
        try:
            answer = self._child.ask(do, **details)
        except (BackendUnavailableError, ConfigError):
            raise
        except SegDeployError as error:
            if not self.is_candidate:
                raise
            raise CandidateBrokenError(error.message, hint=error.hint) from error
        self.longest_s = max(self.longest_s, monotonic() - start)
        return answer
