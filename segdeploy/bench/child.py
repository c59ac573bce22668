"""The parent's end of a bench worker: start, ask with a time limit, stop.

A worker that dies, hangs or talks nonsense ends as an ArtifactError that names the artifact and
quotes the end of the worker's log; the other workers are not touched.
"""

from __future__ import annotations

from typing import Any

from segdeploy.backends.isolation import find_python
from segdeploy.core.child import Child, ChildFailedError, child_environment
from segdeploy.core.errors import ArtifactError, SegDeployError
from segdeploy.core.folder import ModelFolder


class BenchChild:
    """A worker process for one artifact, in the environment that its runtime lives in.

    Args:
        folder: The artifact.
        threads: How many each runtime may use.
        limit_s: Longest time one answer may take, in seconds.
    """

    def __init__(self, folder: ModelFolder, threads: int, limit_s: float) -> None:
        self._path = folder.path
        self._limit_s = limit_s
        self._child = Child(
            "segdeploy.bench.worker",
            python=(python := find_python(folder)),
            environment=child_environment(threads, python),
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
