"""Fixtures for every room: shared real data, a command line, an untrained checkpoint, scenes."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

# Before torch is imported: spinning threads of two processes on few cores stall each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A child process a build costs seconds; tests of isolation switch it on again.
os.environ.setdefault("SEGDEPLOY_IN_PROCESS", "1")

import segdeploy.cli.commands  # noqa: F401  registers every command
from segdeploy.cli.app import run_app
from segdeploy.core.folder import Checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.data import Dataset, open_dataset
from segdeploy.data.synthetic import CLASSES

_BESIDE = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images: SEGDEPLOY_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("SEGDEPLOY_DATA") or _BESIDE)
    if not folder.is_dir():
        pytest.skip("real data absent: set SEGDEPLOY_DATA to its folder")
    return folder


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("SEGDEPLOY_QUIET", "SEGDEPLOY_VERBOSE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segdeploy", *arguments])
        code = run_app()
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def synthetic_val() -> Dataset:
    """Four validation scenes of 64x96, five classes."""
    return open_dataset("synthetic:64x96:16", "val")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An untrained lraspp_mobilenet_v3_small of the five synthetic classes, seeded."""
    torch = pytest.importorskip("torch")
    from segdeploy.zoo.architectures.lraspp import LRASPP_MOBILENET_V3_SMALL
    from segdeploy.zoo.checkpoint import save_checkpoint

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LRASPP_MOBILENET_V3_SMALL.build(len(CLASSES))
    return save_checkpoint(
        tmp_path_factory.mktemp("run") / "checkpoint",
        module,
        model=LRASPP_MOBILENET_V3_SMALL.name,
        task=Task.MULTICLASS,
        classes=CLASSES,
        preprocess=PreprocessSpec(),
        design_size=(64, 96),
        trained=False,
    )


@pytest.fixture(scope="session")
def undecided_checkpoint(
    tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """The tiny one with each class's mean logit on a scene taken off: every class wins pixels."""
    torch = pytest.importorskip("torch")
    from segdeploy.core.preprocess import normalize_image
    from segdeploy.zoo import load_module, main_logits, save_checkpoint

    module = load_module(tiny_checkpoint).eval()
    image = open_dataset("synthetic:64x96:16", "val")[0].image
    batch = torch.from_numpy(normalize_image(image, PreprocessSpec())[None])
    with torch.no_grad():
        module.classifier.high_classifier.bias -= main_logits(module(batch)).mean(dim=(0, 2, 3))
        assert len(main_logits(module(batch)).argmax(dim=1).unique()) > 2
    manifest = tiny_checkpoint.manifest
    saved: Checkpoint = save_checkpoint(
        tmp_path_factory.mktemp("undecided") / "checkpoint",
        module,
        model=manifest.model,
        task=manifest.task,
        classes=manifest.classes,
        preprocess=manifest.preprocess,
        design_size=manifest.design_size,
        trained=False,
    )
    return saved


Ranks = Callable[..., list["subprocess.CompletedProcess[str]"]]


@pytest.fixture
def run_ranks() -> Ranks:
    """A function that starts one process per command, as the ranks of one group, and waits.

    They get what torchrun sets, without its own seconds of start, or `variables(rank, world)`.
    """

    def torchrun(rank: int, world: int) -> dict[str, str]:
        return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}

    def run(
        commands: Sequence[Sequence[str]],
        variables: Callable[[int, int], dict[str, str]] = torchrun,
    ) -> list[subprocess.CompletedProcess[str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | meeting | variables(rank, len(commands)),
            )
            for rank, command in enumerate(commands)
        ]  # fmt: skip
        done = []
        for process in ranks:
            out, err = process.communicate(timeout=400)
            done.append(subprocess.CompletedProcess([], process.returncode, out, err))
        return done

    return run


@pytest.fixture(scope="session")
def tensorrt_cpu() -> Path:
    """A folder whose `import tensorrt` parses and builds without a GPU; made once per user."""
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
    folder = Path(usual) / "segdeploy-tests" / f"tensorrt-{tag}"
    program = Path(__file__).parent / "tensorrt_cpu" / "install.py"
    made = subprocess.run(
        [sys.executable, str(program), str(folder)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    return folder


@pytest.fixture
def tensorrt(tensorrt_cpu: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT for child processes; this process only finds it."""
    monkeypatch.syspath_prepend(str(tensorrt_cpu))
    monkeypatch.setenv("SEGDEPLOY_IN_PROCESS", "0")
    monkeypatch.setenv("SEGDEPLOY_CACHE", str(tmp_path / "cache"))
