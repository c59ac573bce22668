"""A bench worker with a planted fault, so that a gate's verdicts can be checked against the truth.

The variable SEGDEPLOY_PLANTED names it: `slow:0.06` makes every call take 6 % longer, by work that
keeps a core busy; `crash` kills the process in its second block; `hang` never answers again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from segdeploy.bench.child import BenchChild
from segdeploy.bench.worker import BenchWorker
from segdeploy.core.child import Array, die_with_parent

PLANTED = "SEGDEPLOY_PLANTED"


class PlantedChild(BenchChild):
    """Starts the worker below."""

    module = "benchmarks.planted_worker"


class PlantedWorker(BenchWorker):
    """Does what a bench worker does, and its fault."""

    def __init__(self) -> None:
        super().__init__()
        self._fault, _, share = os.environ.get(PLANTED, "").partition(":")
        self._share = float(share or 0)
        self._num_blocks = 0

    def open(
        self, request: dict[str, Any], arrays: list[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        """Open as usual, then slow the call down."""
        answer = super().open(request, arrays)
        if self._fault == "slow" and self._call is not None:
            self._call = slowed(self._call, self._share)
        return answer

    def sample(
        self, request: dict[str, Any], arrays: list[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        """Run a block, unless its time has come."""
        self._num_blocks += 1
        if self._num_blocks > 2 and self._fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        while self._num_blocks > 2 and self._fault == "hang":
            signal.pause()
        return super().sample(request, arrays)


def slowed(call: Callable[[], object], share: float) -> Callable[[], object]:
    """Return a call that takes so much longer than `call` took."""

    def slow() -> None:
        start = perf_counter_ns()
        call()
        end = start + round((perf_counter_ns() - start) * (1 + share))
        while perf_counter_ns() < end:
            pass

    return slow


if __name__ == "__main__":
    die_with_parent()
    PlantedWorker().serve()
