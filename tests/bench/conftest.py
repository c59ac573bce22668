"""A made-up backend, a plug-in that sleeps, prints, crashes or hangs as told.

It is found through an entry point, as a user's would be, so the workers need no framework.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segdeploy.backends import BACKENDS
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.folder import save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task

PLUGIN = """
import json, os, signal, sys, threading, time
from pathlib import Path
from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.session import Backend as Base

OPENED = []
TOGETHER = threading.Barrier(2)

def state(pid):
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]

class Session:
    def __init__(self, folder):
        self.told = json.loads(folder.payload.read_text())
        self.folder = folder
        OPENED.append(self)
        if "opened" in self.told:
            with open(self.told["opened"], "a") as file: file.write("o")
        if "pids" in self.told: Path(self.told["pids"], str(os.getpid())).touch()

    def bind(self, batch):
        told, calls = self.told, [0]
        seen = {"shape": list(batch.shape), "dtype": str(batch.dtype),
                "threads": os.environ.get("OMP_NUM_THREADS"), "std": float(batch.std()),
                "affinity": sorted(os.sched_getaffinity(0)), "pid": os.getpid(),
                "limit": os.environ.get("SEGDEPLOY_NUM_THREADS")}
        (self.folder.path / "seen.json").write_text(json.dumps(seen))
        def call():
            calls[0] += 1
            if "journal" in told:
                with open(told["journal"], "a") as file: file.write(self.folder.path.name[0])
            if told.get("print"): print("stray", {"not": "protocol"}); os.write(1, b'{"x": 1}\\n')
            if "states" in told:
                others = set(os.listdir(told["pids"])) - {str(os.getpid())}
                with open(told["states"], "a") as file: file.write("".join(map(state, others)))
            if told.get("together") and self is not OPENED[0]: TOGETHER.wait(20)
            if calls[0] == told.get("interrupt_at"): os.kill(os.getppid(), signal.SIGINT)
            if calls[0] == told.get("crash_at"):
                print("last words", file=sys.stderr, flush=True); os.abort()
            if calls[0] == told.get("hang_at"): time.sleep(600)
            if calls[0] == told.get("raise_at"): raise ValueError("a bug of the backend")
            time.sleep(told.get("sleep", 0))
            block = bytearray(told.get("mib", 0) * 2**20)
        return call

    def close(self): pass

class Backend(Base):
    name = "fake"
    precisions = ()
    payload_name = "payload.json"
    def require(self): pass
    def build(self, request): raise NotImplementedError
    def open(self, folder, device):
        if device != "cpu": raise BackendUnavailableError("no such device", hint="use cpu")
        return Session(folder)

BACKEND = Backend()
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the made-up backend where this process and its workers find it."""
    site = tmp_path / "site"
    info = site / "fake_bench_backend-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "fake_bench_backend.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-bench-backend\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[segdeploy.backends]\nfake = fake_bench_backend:BACKEND\n"
    )
    monkeypatch.syspath_prepend(str(site))
    BACKENDS.__dict__.pop("_table", None)  # It was read before the plug-in was there.
    yield
    BACKENDS.__dict__.pop("_table", None)


def _make_artifact(
    run: Path,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    io: IoContract | None = None,
    design_size: tuple[int, int] | None = None,
    **told: Any,
) -> Path:
    contract = io or IoContract()
    inputs, outputs = contract_tensors(contract, Task.MULTICLASS, 3, size)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.MULTICLASS, classes=("a", "b", "c"),
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={"payload.json": ""},
        io=contract, target="fake-fp32", design_size=design_size,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / "payload.json").write_text(json.dumps(told))

    save_folder(run / name, manifest, fill)
    return run / name


@pytest.fixture
def make_artifact() -> Callable[..., Path]:
    """A function (run, name, *, size, io, design_size, **told) that returns an artifact's folder.

    What it is told: sleep, print, mib (to allocate), crash_at, hang_at, raise_at, interrupt_at (the
    number of a call); journal, opened, pids, states (files and folders to write to); together.
    """
    return _make_artifact
