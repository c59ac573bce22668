"""One artifact on its way through a run, and the steps that it takes.

Whoever is not asked stands still: its worker is stopped, since threads of a pool that spin while
they wait steal time from the one that is measured (the ratio of two launches of one artifact varied
by 15 % with spinning neighbours, by 0.8 % with stopped ones).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.bench.child import BenchChild, InProcess, Runner
from segdeploy.bench.inputs import make_batch
from segdeploy.bench.plan import NUM_BLOCKS, THROUGHPUT_S, BenchPlan
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import write_errors
from segdeploy.core.folder import ModelFolder
from segdeploy.core.scratch import ScratchFolder


@dataclass
class Launch:
    """What one process of an artifact said."""

    opened: dict[str, Any] = field(default_factory=dict)
    warm_up: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Entry:
    """One artifact: its size, its launches so far, the process that is alive, what went wrong."""

    folder: ModelFolder
    size: tuple[int, int]
    launches: list[Launch] = field(default_factory=list)
    runner: Runner | None = None
    scratch: ScratchFolder | None = None
    throughput: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)
    sustained: list[tuple[float, float, float, int]] = field(default_factory=list)
    sustained_s: float = 0.0
    is_interrupted: bool = False
    num_throttled: float | None = None
    error: SegDeployError | None = None

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to one request; the worker runs meanwhile only."""
        if self.runner is None:
            raise RuntimeError("asked before it was launched")
        self.runner.resume()
        try:
            return self.runner.ask(do, **details)
        finally:
            self.runner.pause()

    def stop(self) -> None:
        """End the process, if one is alive."""
        if self.runner is not None:
            self.runner.stop()
            self.runner = None
        if self.scratch is not None:
            self.scratch.cleanup()
            self.scratch = None


Step = Callable[[Entry, BenchPlan], None]


def attempt(step: Step, entry: Entry, plan: BenchPlan) -> None:
    """Take a step unless the entry has failed; keep the error and end the process if it fails."""
    if entry.error is not None:
        return
    try:
        step(entry, plan)
    except SegDeployError as error:
        entry.error = error
        entry.stop()


def launch(entry: Entry, plan: BenchPlan) -> None:
    """Start a process, open the artifact in it and warm it up."""
    entry.runner = (
        InProcess(entry.folder)
        if plan.in_process
        else BenchChild(entry.folder, plan.num_threads, plan.longest_answer_s, plan.affinity)
    )
    found = Launch()
    entry.launches.append(found)
    found.opened = entry.ask(
        "open",
        path=str(entry.folder.path.resolve()),
        device=plan.device,
        threads=plan.num_threads,
        batch=batch_file(entry, plan, plan.batch_size),
        end_to_end=plan.end_to_end,
    )
    found.warm_up = entry.ask("warm_up", seconds=plan.warmup_s)


def sample(entry: Entry, plan: BenchPlan) -> None:
    """Take one block of samples."""
    seconds = plan.seconds / (NUM_BLOCKS * plan.launches)
    entry.launches[-1].blocks.append(entry.ask("sample", seconds=seconds))


def measure_throughput(batch_size: int) -> Step:
    """Return the step that measures one row of the table of throughput, half of its time."""

    def step(entry: Entry, plan: BenchPlan) -> None:
        batch = batch_file(entry, plan, batch_size)
        seconds = min(THROUGHPUT_S, plan.seconds) / 2
        found = entry.ask("throughput", seconds=seconds, streams=plan.streams, batch=batch)
        entry.throughput.setdefault((batch_size, plan.streams), []).append(found)

    return step


def finish(entry: Entry, _plan: BenchPlan) -> None:
    """Ask what only the whole process knows, and end it, unless Ctrl-C did."""
    if entry.runner is not None:
        entry.launches[-1].finished = entry.ask("finish")
    entry.stop()


def batch_file(entry: Entry, plan: BenchPlan, batch_size: int) -> str:
    """Return a file with a batch for this artifact; it is made once for a process."""
    if entry.scratch is None:
        entry.scratch = ScratchFolder()
    file = Path(entry.scratch.name) / f"batch{batch_size}.npy"
    if not file.exists():
        batch = make_batch(entry.folder.manifest, entry.size, batch_size, as_images=plan.end_to_end)
        with write_errors(file):
            np.save(file, batch)
    return str(file)
