"""Crashes planted inside real converters: the sweep goes on, and the run folder stays clean.

`sitecustomize` is imported by every child at its start; there it replaces a function of the
converter by one that crashes, hangs or takes all memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeploy.backends import BACKENDS, open_session
from segdeploy.backends.isolation import IN_PROCESS, IsolatedSession
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    ConfigError,
)
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.export import export
from segdeploy.verify import verify, verify_run

PLANTED = {
    "segv": "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "sleep": "import time\n    time.sleep(600)",
    "allocate": "kept = []\n    while True: kept.append(bytearray(2**26))",
}
HEALTHY = "torchscript-fp32"


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_PROCESS, "0")


def _plant(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: str) -> None:
    module, _, function = where.rpartition(".")
    (folder / "sitecustomize.py").write_text(
        f"import {module}\n"
        "def planted(*given, **named):\n"
        "    print('planted in the converter', flush=True)\n"
        f"    {PLANTED[what]}\n"
        f"{module}.{function} = planted\n"
    )
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("target", "where", "what", "limits", "said"),
    [
        ("onnx-fp32", "torch.onnx.export", "segv", {}, "was killed by SIGSEGV"),
        pytest.param(
            "openvino-fp32", "openvino.save_model", "allocate", {"build_memory_mib": 2500.0},
            "more than the limit of 2500 MiB", marks=pytest.mark.slow,
        ),
        pytest.param(
            "executorch-fp32", "torch.export.export", "sleep", {"build_limit_s": 25.0},
            "no answer within 25 s, its limit", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_planted_crash_leaves_the_sweep_running(
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    where: str,
    what: str,
    limits: dict[str, Any],
    said: str,
) -> None:
    try:
        BACKENDS.get(target.partition("-")[0]).require()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    (tmp_path / "site").mkdir()
    _plant(tmp_path / "site", monkeypatch, where, what)
    run = tmp_path / "run"
    failed, healthy = (
        outcome
        for outcome in export(
            tiny_checkpoint.path, [target, HEALTHY], run, size=(64, 96), keep_going=True, **limits
        )
        if outcome.requested
    )
    assert isinstance(failed.error, BuildError)
    assert said in failed.error.message
    assert "planted in the converter" in failed.error.log
    assert healthy.error is None
    assert verify(healthy.path).passed
    left = {p.name for p in run.iterdir()}
    assert left <= {f"{HEALTHY}+64x96", "onnx-fp32+64x96"}
    assert f"{target}+64x96" not in left
    assert verify_run(run).passed


def test_an_artifact_that_failed_to_build_again_is_kept(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = export(tiny_checkpoint.path, [HEALTHY], run)[0]
    before = {p.name: p.read_bytes() for p in first.path.iterdir()}
    (tmp_path / "site").mkdir()
    _plant(tmp_path / "site", monkeypatch, "torch.jit.trace", "segv")
    with pytest.raises(BuildError, match="SIGSEGV"):
        export(tiny_checkpoint.path, [HEALTHY], run, force=True)
    assert {p.name: p.read_bytes() for p in first.path.iterdir()} == before
    assert [p.name for p in run.iterdir()] == [HEALTHY]


def test_the_command_ends_with_one_document_and_the_codes_of_what_failed(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    _plant(tmp_path / "site", monkeypatch, "torch.onnx.export", "segv")
    command = [
        sys.executable, "-m", "segdeploy", "export", str(tiny_checkpoint.path), "--json",
        "--target", "onnx-fp16", "--target", HEALTHY, "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = {each["target"]: each for each in json.loads(done.stdout)}
    assert done.returncode == BuildError.exit_code
    assert found[HEALTHY]["passed"] is True
    assert "SIGSEGV" in found["onnx-fp32"]["error"]
    assert "onnx-fp32, which failed" in found["onnx-fp16"]["error"]
    assert "planted in the converter" in done.stderr


def test_a_missing_package_stops_its_own_target_only(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDEPLOY_PYTHON_LITERT", str(tmp_path / "no-python"))
    asked = ["litert-fp32", HEALTHY]
    missing, healthy = export(
        tiny_checkpoint.path, asked, tmp_path / "run", size=(64, 96), keep_going=True
    )
    assert isinstance(missing.error, BackendUnavailableError)
    assert "litert" in missing.error.message
    assert healthy.error is None
    with pytest.raises(BackendUnavailableError):
        export(tiny_checkpoint.path, asked[:1], tmp_path / "one", size=(64, 96), keep_going=True)


@pytest.mark.parametrize("limit", [{"build_limit_s": -1.0}, {"build_memory_mib": float("nan")}])
def test_limits_that_are_none_are_refused_at_once(
    tiny_checkpoint: Checkpoint, tmp_path: Path, limit: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        export(tiny_checkpoint.path, [HEALTHY], tmp_path / "run", **limit)
    assert not (tmp_path / "run").exists()


def test_a_session_of_a_foreign_runtime_is_as_good_as_one_in_the_process(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made = export(tiny_checkpoint.path, [HEALTHY], tmp_path)[0]
    artifact = load_artifact(made.path)
    batch = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    session = open_session(artifact, isolated=True)
    assert isinstance(session, IsolatedSession)
    direct = open_session(artifact, isolated=False)
    np.testing.assert_array_equal(session.run(batch)["logits"], direct.run(batch)["logits"])
    session.bind(batch)()
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(batch)


def test_a_runtime_that_crashes_is_an_error(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export(tiny_checkpoint.path, [HEALTHY], tmp_path / "run")[0]
    (tmp_path / "site").mkdir()
    _plant(tmp_path / "site", monkeypatch, "torch.jit.load", "segv")
    with pytest.raises(ArtifactError, match=r"crashed.*SIGSEGV"):
        open_session(load_artifact(made.path), isolated=True)
