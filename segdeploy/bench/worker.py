"""The child process that runs one artifact under the clock; the parent (`child.py`) drives it.

`python -m segdeploy.bench.worker FD` reads requests from stdin and answers on file descriptor FD,
one JSON document a line each. Its own stdout and stderr are the parent's log file, so whatever a
runtime prints cannot break the protocol. It ends when stdin ends: a killed parent leaves none.

One artifact per process: peak memory is its own, a crash is its own, and two runtimes never share
a thread pool or an allocator.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from segdeploy.core.errors import SegDeployError

_LONG_CALL_MS = 250.0


class Worker:
    """State between requests: the bound call, and how long it took last time."""

    def __init__(self) -> None:
        self._call: Callable[[], None] | None = None
        self._latest_ms = 0.0
        self._close: Callable[[], None] = lambda: None

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the folder, bind the batch and run it once; return what the runtime settled on."""
        import numpy as np

        from segdeploy.backends import open_session
        from segdeploy.core.folder import load_folder

        folder = load_folder(Path(request["path"]), check_files=False)
        session = open_session(folder, request["device"])
        _set_torch_threads(request["threads"])
        batch = np.load(request["batch"], allow_pickle=False)
        self._call, self._close = session.bind(batch), session.close
        self._call()
        return {"input_shape": list(batch.shape), "runtime": _describe_runtime(session)}

    def sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run for a while; return the samples in ms.

        The first call is thrown away, since others have emptied the caches, unless calls are so
        long that it cannot matter.
        """
        from segdeploy.measure import sample_ms

        if self._call is None:
            raise RuntimeError("sample before open")
        if self._latest_ms < _LONG_CALL_MS:
            self._call()
        samples = sample_ms(self._call, request["seconds"])
        self._latest_ms = samples[-1]
        return {"samples_ms": samples}

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """Free the session; return the peak memory and how often others took the core."""
        from segdeploy.measure import peak_memory_mib

        peak = peak_memory_mib()
        self._call = None
        self._close()
        return {
            "peak_memory_mib": peak,
            "cpu_s": time.process_time(),
            "num_preemptions": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        }


def _set_torch_threads(threads: int) -> None:
    """Set torch's own pool, if this artifact brought torch in: it may not follow the variable."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _describe_runtime(session: Any) -> dict[str, Any]:
    """Return what can be asked of the runtimes that were loaded."""
    found: dict[str, Any] = {"session": type(session).__name__}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch_threads"] = torch.get_num_threads()
    if "onnxruntime" in sys.modules:
        found["onnxruntime"] = sys.modules["onnxruntime"].__version__
    providers = getattr(session, "providers", None)
    if isinstance(providers, (list, tuple)):
        found["providers"] = [str(name) for name in providers]
    return found


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request; an error of our tree travels as data."""
    try:
        done: dict[str, Any] = getattr(worker, request["do"])(request)
    except SegDeployError as error:
        kind = type(error).__name__
        return {"error": {"kind": kind, "message": error.message, "hint": error.hint}}
    return done


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer request after request until there are no more."""
    worker = Worker()
    for line in requests:
        answers.write(json.dumps(answer(worker, json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Serve the parent; Ctrl-C is the parent's to report."""
    try:
        with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as answers:
            serve(sys.stdin, answers)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)


if __name__ == "__main__":
    main()
