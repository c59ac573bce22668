"""A foreign ONNX file of two convolutions, and runs of it that take seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.files import sha256_file
from segdeploy.core.folder import MANIFEST, Artifact, Checkpoint, load_artifact
from segdeploy.core.manifest import encode_manifest
from segdeploy.export import export

CLASSES = '["background", "disc", "box", "triangle", "bar"]'


def two_convolutions(extra: int = 0, seed: int = 7) -> onnx.ModelProto:
    """Five classes of 64x96 images; `extra` convolutions by the identity change no answer."""
    rng, width = np.random.default_rng(seed), 16
    stored = {
        "w1": rng.normal(size=(width, 3, 3, 3)) / 3,
        "w2": rng.normal(size=(5, width, 1, 1)),
        "bias": rng.normal(size=5),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["x"]),
    ]
    last = "x"
    for index in range(extra):
        stored[f"identity{index}"] = np.eye(width)[:, :, None, None]
        nodes.append(helper.make_node("Conv", [last, f"identity{index}"], [f"x{index}"]))
        last = f"x{index}"
    nodes.append(helper.make_node("Conv", [last, "w2", "bias"], ["scores"]))
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in stored.items()]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 64, 96])
        for name, channels in (("image", 3), ("scores", 5))
    ]
    graph = helper.make_graph(nodes, "two_convolutions", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.fixture
def make_model() -> Callable[..., onnx.ModelProto]:
    """The function that makes the file's model."""
    return two_convolutions


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `model.onnx` and a `segdeploy.toml` that takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "model.onnx").write_bytes(two_convolutions().SerializeToString())
    (tmp_path / "segdeploy.toml").write_text(
        f"""
[run]
out = "runs/head"
data = "synthetic:64x96:8"

[[model]]
name = "tiny"
checkpoint = "model.onnx"
targets = ["onnx-fp32"]
onnx = {{ classes = {CLASSES}, scale = 0.0039, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }}

[bench]
threads = 1
seconds = 0.05
warmup = 0.05

[gate]
latency = "off"
size = "10%"
"""
    )
    return tmp_path


@pytest.fixture(scope="session")
def baseline(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An onnx-fp32 artifact at 64x96 that says that it was trained and verified."""
    run = tmp_path_factory.mktemp("gate")
    export(tiny_checkpoint.path, ["onnx-fp32"], run, size=(64, 96))
    return rewrite_manifest(load_artifact(run / "onnx-fp32+64x96"), passed=True, trained=True)


def rewrite_manifest(folder: Artifact, **changes: Any) -> Artifact:
    """Change a manifest on disk, digests of the files included, as a faulty export would."""
    files = {name: sha256_file(folder.path / name) for name in folder.manifest.files}
    manifest = folder.manifest.replace(files=files, **changes)
    (folder.path / MANIFEST).write_bytes(encode_manifest(manifest))
    return load_artifact(folder.path)


@pytest.fixture
def rewrite() -> Callable[..., Artifact]:
    """The function that changes a manifest on disk."""
    return rewrite_manifest
