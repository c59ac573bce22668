"""The same checkpoint, options and versions give the same bytes, whatever the process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest

from segdeploy.core.folder import Checkpoint, load_artifact

TARGETS = ("onnx-fp32", "onnx-fp16", "onnx-int8", "torchscript-fp32")
DATA = "synthetic:64x96"


def _export(checkpoint: Checkpoint, run: Path, **variables: str) -> Path:
    command = [
        sys.executable, "-m", "segdeploy", "export", str(checkpoint.path), "--out", str(run),
        "--calibration", DATA, "--calibration-images", "3", "--no-verify", "--json",
    ]  # fmt: skip
    for target in TARGETS:
        command += ["--target", target]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("reproducible")
    first = {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "SEGDEPLOY_IN_PROCESS": "0"}
    second = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "SEGDEPLOY_IN_PROCESS": "0"}
    return [
        _export(tiny_checkpoint, folder / "a", **first),
        _export(tiny_checkpoint, folder / "deep" / "b", **second),
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_hash_seed_threads_process_and_place_change_no_byte(runs: list[Path], target: str) -> None:
    payloads = [load_artifact(run / target).payload for run in runs]
    digests = {hashlib.sha256(payload.read_bytes()).hexdigest() for payload in payloads}
    assert len(digests) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_the_payload_says_what_it_is_and_what_it_came_from(
    runs: list[Path], target: str, tiny_checkpoint: Checkpoint
) -> None:
    artifact = load_artifact(runs[0] / target)
    if target.startswith("onnx"):
        props = onnx.load(artifact.payload).metadata_props
        facts = {p.key.removeprefix("segdeploy."): p.value for p in props}
        lineage, classes = json.loads(facts["lineage"]), json.loads(facts["classes"])
    else:
        with zipfile.ZipFile(artifact.payload) as archive:
            name = next(n for n in archive.namelist() if n.endswith("segdeploy.json"))
            facts = json.loads(archive.read(name))
        lineage, classes = facts["lineage"], facts["classes"]
    assert tuple(classes) == tiny_checkpoint.manifest.classes
    assert facts["target"] == target
    assert lineage[0]["digest"] == tiny_checkpoint.manifest.digest
    assert lineage[0]["files"] == tiny_checkpoint.manifest.files
    assert str(runs[0]).encode() not in artifact.payload.read_bytes()
