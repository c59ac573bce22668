"""The parent's end of a bench worker: start, ask with a time limit, pause, stop.

A worker that dies, hangs or talks nonsense ends as an ArtifactError that names the artifact and
quotes the end of the worker's log; the other workers are not touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, Protocol

from segdeploy.backends.isolation import find_python
from segdeploy.bench.worker import STARTED, BenchWorker
from segdeploy.core.child import Child, ChildFailedError, child_environment
from segdeploy.core.errors import ArtifactError, SegDeployError
from segdeploy.core.folder import ModelFolder


class Runner(Protocol):
    """What runs one artifact: a worker process, or this process itself."""

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to one request."""

    def pause(self) -> None:
        """Stop its threads where they are."""

    def resume(self) -> None:
        """Let it go on."""

    def stop(self) -> None:
        """End it, whatever state it is in."""


class BenchChild:
    """A worker process for one artifact, in the environment that its runtime lives in.

    Args:
        folder: The artifact.
        threads: How many each runtime may use.
        limit_s: Longest time one answer may take, in seconds.
        affinity: The cores that it runs on; default: those of this process.
    """

    module = "segdeploy.bench.worker"  # Experiments run another, with planted faults.

    def __init__(
        self,
        folder: ModelFolder,
        threads: int,
        limit_s: float,
        affinity: Sequence[int] | None = None,
    ) -> None:
        self._path = folder.path
        self._limit_s = limit_s
        python = find_python(folder)
        variables = child_environment(threads, python)
        with pinned(affinity):
            self._child = Child(
                self.module,
                python=python,
                environment={**variables, STARTED: str(perf_counter_ns())},
            )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            ArtifactError: If the worker died, hung or answered nonsense.
            SegDeployError: What the worker itself raised, with its own type.
        """
        try:
            return self._child.ask({"do": do, **details}, limit_s=self._limit_s)[0]
        except ChildFailedError as error:
            log = f"The end of its log:\n{error.log}" if error.log else "It wrote no log."
            raise ArtifactError(
                f"{self._path} could not be benchmarked: it {error.reason}.", hint=log
            ) from error
        except SegDeployError as error:
            error.message = f"{self._path}: {error.message}"
            raise

    def pause(self) -> None:
        """Stop its threads where they are: spinning ones would steal time from another worker."""
        self._child.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._child.resume()

    def stop(self) -> None:
        """End the worker, whatever state it is in."""
        self._child.stop()


class InProcess:
    """The worker's code in this very process: for debuggers, and runtimes that allow one process.

    Peak memory is that of everything here, idle sessions keep their threads, and a crash is ours.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._path = folder.path
        self._worker = BenchWorker()

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Return the answer to one request.

        Raises:
            SegDeployError: What the worker raised; the message names the artifact.
        """
        try:
            answer: dict[str, Any] = getattr(self._worker, do)(details, [])[0]
        except SegDeployError as error:
            error.message = f"{self._path}: {error.message}"
            raise
        return answer

    def pause(self) -> None:
        """Do nothing: there is one process."""

    def resume(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Free the sessions."""
        self._worker.finish({}, [])


@contextmanager
def pinned(cores: Sequence[int] | None) -> Iterator[None]:
    """Bind this thread, and what it starts meanwhile, to some cores; None changes nothing."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
