"""The child process that runs one artifact under the clock; the parent (`child.py`) drives it.

One artifact per process: peak memory is its own, a crash is its own, and two runtimes never share
a thread pool or an allocator.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from segdeploy.bench.call import bind_call, bind_end_to_end
from segdeploy.bench.gpu_time import CALLS, EventClock, open_event_clock
from segdeploy.bench.streams import (
    count_calls,
    count_stream_calls,
    limited_threads,
    set_torch_threads,
)
from segdeploy.core.child import Array, Worker, die_with_parent
from segdeploy.core.folder import ModelFolder, installed_versions
from segdeploy.core.session import Session

STARTED = "SEGDEPLOY_STARTED_NS"
"""Variable: when the parent started this process, on the clock that both share."""
_LONG_CALL_MS = 250.0
_RUNTIMES = {
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "executorch": "executorch",
    "coremltools": "coremltools",
    "ncnn": "ncnn",
    "numba": "numba",
    "ai_edge_litert": "ai-edge-litert",
    "numpy": "numpy",
}  # fmt: skip  By module: what was imported is what ran.
Answer = tuple[dict[str, Any], list[Array]]
Call = Callable[[], object]


class BenchWorker(Worker):
    """State between requests: the opened folder, the bound calls, how long one took last time."""

    def __init__(self) -> None:
        self._ready_ns = time.perf_counter_ns()
        self._call: Call | None = None
        self._latest_ms = 0.0
        self._peak_mib: float | None = None
        self._event_clock: EventClock | None = None
        self._sessions: dict[int, list[Session]] = {}  # By streams; latency is measured on 1.
        self._calls: dict[tuple[int, str], list[Call]] = {}  # By streams and batch.

    def open(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Open the folder, bind the batch and run it once; return what the runtime settled on."""
        import numpy as np

        from segdeploy.core.folder import load_folder

        batch = np.load(request["batch"], allow_pickle=False)
        start = time.perf_counter_ns()
        self._asked = request
        self._folder: ModelFolder = load_folder(Path(request["path"]), check_files=False)
        (session,) = self._open_sessions(1)
        set_torch_threads(request["threads"])
        self._call = self._bind(session, batch)
        loaded = time.perf_counter_ns()
        self._call()
        first = time.perf_counter_ns()
        self._calls[1, request["batch"]] = [self._call]
        return {
            "input_shape": list(batch.shape),
            "runtime": _describe_runtime(session),
            "cold_start_ms": self._cold_start(loaded - start, first - loaded),
        }, []

    def warm_up(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Run until latency is steady, `seconds` at most; return how that went."""
        from segdeploy.measure.steady import warm_up_until_steady

        found = warm_up_until_steady(self._bound(), request["seconds"])
        return asdict(found), []

    def sample(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Run for a while; return the samples in ms, when each began, and the books of each.

        The first call is thrown away, since others have emptied the caches, unless calls are so
        long that it cannot matter.
        """
        from segdeploy.measure.clock import sample_calls
        from segdeploy.measure.regions import sample_regions

        call = self._bound()
        if self._latest_ms < _LONG_CALL_MS:
            call()
        books: dict[str, list[float]] = {}
        if self._asked["end_to_end"]:
            samples, books = sample_regions(call, request["seconds"])
        else:
            samples = sample_calls(call, request["seconds"])
        self._latest_ms = samples.ms[-1]
        return {
            "samples_ms": samples.ms,
            "starts_ns": samples.starts_ns,
            "regions_ms": books,
            "event_ms": self._time_by_events(call),
        }, []

    def throughput(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Run `streams` sessions at a time; return {images, seconds}.

        `batch` names a file with another batch than the one that was opened with.
        """
        num_streams = int(request.get("streams", 1))
        batch = request.get("batch") or self._asked["batch"]
        calls, batch_size = self._stream_calls(num_streams, batch)
        seconds = request["seconds"]
        if num_streams == 1:
            count, took = count_calls(calls[0], seconds)
        else:
            count, took = count_stream_calls(calls, seconds, self._split(num_streams))
            set_torch_threads(self._asked["threads"])
        return {"images": count * batch_size, "seconds": took}, []

    def profile(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Open the folder under its runtime's own profiler; return the layers."""
        import numpy as np

        from segdeploy.bench.profilers import profile_folder
        from segdeploy.core.folder import load_folder

        folder = load_folder(Path(request["path"]), check_files=False)
        batch = np.load(request["batch"], allow_pickle=False)
        set_torch_threads(request["threads"])
        found = profile_folder(folder, batch, request["seconds"])
        return {"input_shape": list(batch.shape), **found}, []

    def note_peak(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Return the peak memory up to now: what comes later is not counted."""
        from segdeploy.measure import peak_memory_mib

        if self._peak_mib is None:
            self._peak_mib = peak_memory_mib()
        return {"peak_memory_mib": self._peak_mib}, []

    def finish(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Free the sessions; return the peak memory and how often others took the core."""
        peak = self.note_peak(request, [])[0]
        self._call, self._calls = None, {}
        if self._event_clock is not None:
            self._event_clock.close()
            self._event_clock = None
        for session in chain(*self._sessions.values()):
            session.close()
        self._sessions = {}
        return {
            **peak,
            "cpu_s": time.process_time(),
            "num_preemptions": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        }, []

    def _bound(self) -> Call:
        if self._call is None:
            raise RuntimeError("sample before open")
        return self._call

    def _time_by_events(self, call: Call) -> list[tuple[float, float]]:
        """Return (host, GPU) times of a few calls in ms; none on the CPU."""
        if self._asked["device"] == "cpu":
            return []
        if self._event_clock is None:
            self._event_clock = open_event_clock(self._asked["device"])
        clock = self._event_clock
        return [] if clock is None else [clock.time(call) for _ in range(CALLS)]

    def _open_sessions(self, num_streams: int) -> list[Session]:
        """Return a session for each stream; they are opened once, whatever batches they get."""
        from segdeploy.backends import open_session

        sessions = self._sessions.setdefault(num_streams, [])
        while len(sessions) < num_streams:
            sessions.append(open_session(self._folder, self._asked["device"], isolated=False))
        return sessions

    def _bind(self, session: Session, batch: Array) -> Call:
        bind = bind_end_to_end if self._asked["end_to_end"] else bind_call
        return bind(session, self._folder.manifest, batch)

    def _stream_calls(self, num_streams: int, batch: str) -> tuple[list[Call], int]:
        """Return one call for each stream, and how many images each of them takes."""
        import numpy as np

        self._bound()
        images = np.load(batch, allow_pickle=False)
        if (num_streams, batch) not in self._calls:
            self.note_peak({}, [])  # The peak that is reported is that of the latency alone.
            with limited_threads(self._split(num_streams)):
                sessions = self._open_sessions(num_streams)
                bound = [self._bind(session, images) for session in sessions]
            self._calls[num_streams, batch] = bound
        return self._calls[num_streams, batch], len(images)

    def _split(self, num_streams: int) -> int:
        return max(1, int(self._asked["threads"]) // num_streams)

    def _cold_start(self, load_ns: int, first_ns: int) -> dict[str, float | None]:
        started = os.environ.get(STARTED, "")
        process = (self._ready_ns - int(started)) / 1e6 if started.isdecimal() else None
        load, first = load_ns / 1e6, first_ns / 1e6
        total = None if process is None else process + load + first
        return {"process": process, "load": load, "first_run": first, "total": total}


def _describe_runtime(session: Any) -> dict[str, Any]:
    """Return what can be asked of the runtimes that were loaded."""
    loaded = [package for module, package in _RUNTIMES.items() if module in sys.modules]
    found: dict[str, Any] = {
        "session": type(session).__name__,
        "versions": installed_versions(loaded),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch_threads"] = torch.get_num_threads()
    if "onnxruntime" in sys.modules:
        found["onnxruntime"] = sys.modules["onnxruntime"].__version__
    providers = getattr(session, "providers", None)
    if isinstance(providers, (list, tuple)):
        found["providers"] = [str(name) for name in providers]
    return found


def main() -> None:
    """Serve the parent."""
    die_with_parent()
    BenchWorker().serve()


if __name__ == "__main__":
    main()
