"""The child process that runs one artifact under the clock; the parent (`child.py`) drives it.

One artifact per process: peak memory is its own, a crash is its own, and two runtimes never share
a thread pool or an allocator.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdeploy.core.child import Array, Worker, die_with_parent
from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import SizeRule
from segdeploy.core.session import Session
from segdeploy.upsampling import LOW_LOGITS, Upsampler

_LONG_CALL_MS = 250.0
Answer = tuple[dict[str, Any], list[Array]]


class BenchWorker(Worker):
    """State between requests: the bound call, and how long it took last time."""

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None
        self._latest_ms = 0.0
        self._close: Callable[[], None] = lambda: None

    def open(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Open the folder, bind the batch and run it once; return what the runtime settled on."""
        import numpy as np

        from segdeploy.backends import open_session
        from segdeploy.core.folder import load_folder

        folder = load_folder(Path(request["path"]), check_files=False)
        session = open_session(folder, request["device"], isolated=False)
        _set_torch_threads(request["threads"])
        batch = np.load(request["batch"], allow_pickle=False)
        if request["end_to_end"]:
            self._call = bind_end_to_end(session, folder.manifest, batch)
        else:
            self._call = bind_call(session, folder.manifest, batch)
        self._close = session.close
        self._call()
        return {"input_shape": list(batch.shape), "runtime": _describe_runtime(session)}, []

    def sample(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
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
        return {"samples_ms": samples}, []

    def finish(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Free the session; return the peak memory and how often others took the core."""
        from segdeploy.measure import peak_memory_mib

        peak = peak_memory_mib()
        self._call = None
        self._close()
        return {
            "peak_memory_mib": peak,
            "cpu_s": time.process_time(),
            "num_preemptions": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        }, []


def bind_call(session: Session, manifest: Manifest, batch: Array) -> Callable[[], object]:
    """Return the call that is measured: up to the outputs, of low-resolution logits up to labels.

    Else these would look faster for work that is only left to the caller.
    """
    if manifest.io.output is not OutputKind.LOW_LOGITS:
        return session.bind(batch)
    upsampler = Upsampler.of(manifest)
    upsampler.prepare()
    sides = batch.shape[1:3] if manifest.io.input is InputKind.IMAGE else batch.shape[2:4]
    size = (int(sides[0]), int(sides[1]))
    return lambda: upsampler.labels(session.run(batch)[LOW_LOGITS], size)


def bind_end_to_end(session: Session, manifest: Manifest, images: Array) -> Callable[[], object]:
    """Return the call from a uint8 image (1, H, W, 3), at the size given, to its label map."""
    from segdeploy.backends.predictor import Predictor

    spec = dataclasses.replace(manifest.preprocess, size_rule=SizeRule.KEEP)
    predictor = Predictor(session, spec, manifest.task, manifest.io, manifest)
    return predictor.bind(images[0])


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


def main() -> None:
    """Serve the parent."""
    die_with_parent()
    BenchWorker().serve()


if __name__ == "__main__":
    main()
