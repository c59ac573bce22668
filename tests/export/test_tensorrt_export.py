"""From a checkpoint to engines, by TensorRT's own parser and builder on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segdeploy.backends.tensorrt_plan import read_plan
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.export import export

TARGETS = ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"]


def test_every_precision_builds_with_every_contract_and_rebuilds_equal(
    checkpoint: Checkpoint, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = tmp_path / "run"
    export(checkpoint.path, ["onnx-fp32"], run, size=(64, 96))  # Only this process knows the model.
    request.getfixturevalue("tensorrt")

    def build(io: IoContract | None = None) -> dict[str, Path]:
        made = export(
            checkpoint.path, TARGETS, run, size=(64, 96), io=io, calibration="synthetic:64x96:16",
            num_calibration_images=2,
        )  # fmt: skip
        return {each.target: each.path for each in made if each.requested}

    found = build()
    first = {target: (path / "model.plan").read_bytes() for target, path in found.items()}
    assert len(set(first.values())) == 3
    for target, path in found.items():
        header, engine = read_plan(path / "model.plan")
        assert engine.startswith(b"vtrt")
        assert header["precision"] == target.removeprefix("tensorrt-")
        assert header["profile"] == {"tensor": [[1, 3, 64, 96]] * 3}
        assert header["facts"]["model"] == checkpoint.manifest.model
        assert header["tf32"] is False
        assert json.loads((path / "engine.json").read_text())["built"] == header["built"]
        assert "engine.json" in load_artifact(path).manifest.companions
        shutil.rmtree(path)
    again = build()  # Another process, and the cast and the calibration made anew.
    assert {t: (p / "model.plan").read_bytes() for t, p in again.items()} == first
    for path in build(IoContract(InputKind.IMAGE, OutputKind.LABELS)).values():
        header, _ = read_plan(path / "model.plan")
        assert header["profile"] == {"image": [[1, 64, 96, 3]] * 3}
        assert header["outputs"] == ["labels"]
