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
from segdeploy.core.scratch import ScratchFolder

BLOCK_S = 0.1
WARM_UP_S = 0.1
NUM_PAIRS = 2
"""Blocks of each side in a launch: A B, B A. With four, half as many launches fit into a time, and
the interval was wider by a quarter."""
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
    """One launch: the candidate, and the baseline beside it (None where it is a stored result).

    `sampling_s` is the time that warm-up and blocks took, in seconds.
    """

    candidate: Side
    baseline: Side | None = None
    sampling_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """How a launch is run.

    `size` is (H, W); `streams` 0 leaves throughput out; `one_by_one` starts a process only when the
    other one is open, so that neither disturbs the other's cold start.
    """

    size: tuple[int, int]
    batch_size: int = 1
    threads: int = 1
    device: str = "cpu"
    streams: int = 0
    one_by_one: bool = False


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
        folder = Path(self._stack.enter_context(ScratchFolder()))
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
        # The baseline first in the first launch: it says how long an answer may take.
        order = [False, True] if len(self.launches) % 2 == 0 else [True, False]
        with ExitStack() as stack:
            workers = [
                stack.enter_context(self._create_worker(is_candidate=side))
                for side in order
                if side in self._files
            ]
            together = bool(self.launches) and not self._plan.one_by_one
            for worker in workers if together else ():
                worker.start(self._limit_s(worker))
            for worker in workers:
                if not together:
                    worker.start(self._limit_s(worker))
                worker.open(self._files[worker.is_candidate])
                self._note(worker)
            _alternate(workers, _Worker.sample)
            if self._plan.streams:
                _alternate(workers, _Worker.measure_throughput)
            for worker in workers:
                worker.finish()
                self._note(worker)
        sides = {worker.is_candidate: worker.side for worker in workers}
        launch = Launch(sides[True], sides.get(False), sum(worker.sampling_s for worker in workers))
        self.launches.append(launch)
        return launch

    def _create_worker(self, *, is_candidate: bool) -> _Worker:
        folder = self._candidate if is_candidate else self._baseline
        if folder is None:
            raise RuntimeError("no baseline to start")  # Cannot be: it has no file either.
        start = self._start if is_candidate else BenchChild
        return _Worker(folder, self._plan, start, is_candidate=is_candidate)

    def _limit_s(self, worker: _Worker) -> float:
        """Return how long an answer may take: the baseline has all the time it needs."""
        if worker.is_candidate and self._baseline is not None:
            return GRACE_S + _PATIENCE * self._longest_s
        return _OPEN_LIMIT_S

    def _note(self, worker: _Worker) -> None:
        if not worker.is_candidate:
            self._longest_s = max(self._longest_s, worker.longest_s)
        self.runtime["candidate" if worker.is_candidate else "baseline"] = worker.runtime


def _alternate(workers: Sequence[_Worker], step: Callable[[_Worker], None]) -> None:
    """Let each work in turn, the others stopped: A B, B A."""
    for pair in range(NUM_PAIRS):
        for worker in workers if pair % 2 == 0 else workers[::-1]:
            with worker.awake():
                step(worker)


class _Worker:
    """One process of one launch; stopped but where it is asked."""

    def __init__(
        self, folder: ModelFolder, plan: PairPlan, start: Start, *, is_candidate: bool
    ) -> None:
        self._folder, self._plan, self._start = folder, plan, start
        self.is_candidate = is_candidate
        self.longest_s = 0.0
        self.runtime: dict[str, Any] = {}
        self.side = Side()
        self.sampling_s = 0.0
        self._started: BenchChild | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._started is not None:
            self._started.stop()

    def start(self, limit_s: float) -> None:
        """Start the process, whose answers may take so many seconds each."""
        self._started = self._start(self._folder, self._plan.threads, limit_s)

    @property
    def _child(self) -> BenchChild:
        if self._started is None:
            raise RuntimeError("the worker was not started")  # Cannot be: `sample` starts all.
        return self._started

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
            "open", path=str(self._folder.path.resolve()), device=plan.device,
            threads=plan.threads, batch=str(batch), end_to_end=False,
        )  # fmt: skip
        self.side.cold_start_ms = answer["cold_start_ms"]["total"]
        self.runtime = answer["runtime"]
        self._sample("sample", seconds=WARM_UP_S)
        self._child.pause()

    def sample(self) -> None:
        """Run a block."""
        self.side.blocks_ms.append(self._sample("sample", seconds=BLOCK_S)["samples_ms"])

    def measure_throughput(self) -> None:
        """Run a block of several streams at once."""
        found = self._sample("throughput", seconds=BLOCK_S, streams=self._plan.streams)
        self.side.throughput_img_s.append(found["images"] / found["seconds"])

    def finish(self) -> None:
        """Free the session and note the peak memory."""
        with self.awake():
            self.side.memory_mib = self._ask("finish")["peak_memory_mib"]

    def _sample(self, do: str, **details: Any) -> dict[str, Any]:
        start = monotonic()
        answer = self._ask(do, **details)
        self.sampling_s += monotonic() - start
        return answer

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
