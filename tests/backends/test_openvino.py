"""OpenVINO artifacts: agree with eager, run in the precision they are named by, are plain files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segdeploy.backends import open_session
from segdeploy.backends.openvino import (
    _MOST_COMPILED,
    OPENVINO,
    OpenVinoSession,
    check_executed,
    compile_settings,
    executed_types,
    runtime_core,
)
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    DataError,
)
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.export import export

openvino = pytest.importorskip("openvino")

SmallNet = Callable[[Path, int], Checkpoint]

SIZES = [(1, 96, 128), (2, 33, 65), (3, 47, 131)]
# Root mean square difference as a share of the logits' spread; int8 of untrained weights is rough.
CLOSE = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.15}
CPU = runtime_core()
needs_bf16 = pytest.mark.skipif(
    "BF16" not in CPU.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="needs a CPU with bf16",
)


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


@pytest.fixture(scope="module")
def artifacts(checkpoint: Checkpoint) -> dict[str, Artifact]:
    """Artifacts by precision."""
    found = export(
        checkpoint.path,
        [f"openvino-{p}" for p in OPENVINO.precisions],
        checkpoint.path.parent,
        calibration="synthetic:96x128",
        num_calibration_images=4,
    )
    return {o.target.rpartition("-")[2]: load_artifact(o.path) for o in found if o.requested}


def _images(num: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (num, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def _batch(num: int, height: int, width: int) -> np.ndarray:
    spec = PreprocessSpec()
    return np.stack([normalize_image(image, spec) for image in _images(num, height, width)])


def _compiled(session: Any) -> Any:
    assert isinstance(session, OpenVinoSession)
    return session._request(1).compiled


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "int8"])
def test_it_agrees_with_eager_at_any_size_and_runs_in_its_precision(
    precision: str, checkpoint: Checkpoint, artifacts: dict[str, Artifact]
) -> None:
    session, reference = open_session(artifacts[precision]), open_session(checkpoint)
    for size in SIZES:
        batch = _batch(*size)
        batch.setflags(write=False)
        found, exact = session.run(batch)["logits"], reference.run(batch)["logits"]
        assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
        distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
        assert distance < CLOSE[precision]
        if precision != "fp32":
            assert distance > CLOSE["fp32"]
    types = {kind for layer, kind in executed_types(_compiled(session)) if layer == "Convolution"}
    assert types & {"fp32": {"f32"}, "bf16": {"bf16"}, "int8": {"i8", "u8"}}[precision]
    assert "bf16" not in types or precision == "bf16"


def test_of_one_size_it_is_compiled_for_each_batch_size(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    outcomes = export(checkpoint.path, ["openvino-fp32"], tmp_path, size=(33, 65))
    (made,) = (outcome for outcome in outcomes if outcome.requested)
    session, reference = open_session(load_artifact(made.path)), open_session(checkpoint)
    session.run(_batch(8, 33, 65))
    assert list(session._requests) == [8]  # type: ignore[attr-defined]  # Not the one of opening.
    first = _batch(1, 33, 65)
    bound, expected = session.bind(first), session.run(first)["logits"]
    for num_images in (2, 3, 4, 1, 5, 6):
        batch = _batch(num_images, 33, 65)
        exact = reference.run(batch)["logits"]
        assert np.allclose(session.run(batch)["logits"], exact, rtol=1e-4, atol=1e-5)
        (port,) = session._request(num_images).compiled.inputs  # type: ignore[attr-defined]
        assert port.partial_shape.to_shape() == batch.shape
    assert len(session._requests) == _MOST_COMPILED  # type: ignore[attr-defined]
    assert list(session._requests) == [4, 1, 5, 6]  # type: ignore[attr-defined]
    for num_images in (7, 9, 2, 3):
        session.run(_batch(num_images, 33, 65))
    bound()  # Its model had to make room.
    assert np.array_equal(session.run(first)["logits"], expected)
    with pytest.raises(DataError):
        session.run(_batch(1, 34, 65))
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        bound()


def test_ctrl_c_is_heard_after_many_models_were_compiled(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Of a core for each model, the signal stacks are freed while one of them is in use."""
    outcomes = export(checkpoint.path, ["openvino-fp32"], tmp_path, size=(33, 65))
    (made,) = (outcome for outcome in outcomes if outcome.requested)
    code = f"""
import os, signal
from pathlib import Path
import numpy as np
from segdeploy.backends import open_session
from segdeploy.core.folder import load_artifact
session = open_session(load_artifact(Path({str(made.path)!r})))
for num_images in range(1, 13):
    session.run(np.zeros((num_images, 3, 33, 65), np.float32))
session.close()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("unheard")
except KeyboardInterrupt:
    print("heard")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.strip()) == (0, "heard"), ended.stderr


def test_int8_gives_what_its_q_dq_graph_says(
    checkpoint: Checkpoint, artifacts: dict[str, Artifact]
) -> None:
    """Judged by ONNX Runtime without any rewriting: of signed activations OpenVINO makes else."""
    runtime = pytest.importorskip("onnxruntime")
    folder = checkpoint.path.parent
    (outcome, *_) = export(
        checkpoint.path, ["onnx-int8"], folder, calibration="synthetic:96x128",
        num_calibration_images=4,
    )  # fmt: skip
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = runtime.InferenceSession(str(outcome.path / "model.onnx"), options)
    session = open_session(artifacts["int8"])
    for size in SIZES:
        batch = _batch(*size)
        (exact,) = plain.run(["logits"], {"tensor": batch})
        noise = session.run(batch)["logits"] - exact
        assert 10 * np.log10(exact.var() / np.mean(noise**2)) > 25


@pytest.mark.parametrize("asked", [Precision.BF16, Precision.INT8])
def test_a_precision_that_does_not_really_run_is_refused(
    asked: Precision, artifacts: dict[str, Artifact]
) -> None:
    """As on a CPU without it: a model that was compiled, and runs, in f32."""
    compiled = _compiled(open_session(artifacts["fp32"]))
    check_executed(compiled, Precision.FP32)
    with pytest.raises(BackendUnavailableError, match=f"runs this {asked} model in f32"):
        check_executed(compiled, asked)


@needs_bf16
def test_the_default_of_openvino_would_be_refused_as_fp32(artifacts: dict[str, Artifact]) -> None:
    model = CPU.read_model(artifacts["fp32"].payload)
    with pytest.raises(BackendUnavailableError, match="runs this fp32 model in bf16"):
        check_executed(CPU.compile_model(model, "CPU"), Precision.FP32)


def test_weights_stay_in_their_precision(artifacts: dict[str, Artifact]) -> None:
    num_weights = 3 * 16 * 9 + 16 * 32 * 9 + 48 * 32 * 9 + 32 * 5
    sizes = {p: (a.path / "model.bin").stat().st_size for p, a in artifacts.items()}
    assert sizes["fp32"] == sizes["bf16"] >= 4 * num_weights
    assert sizes["int8"] < 2 * num_weights


def test_a_lone_payload_explains_itself(artifacts: dict[str, Artifact]) -> None:
    for artifact in artifacts.values():
        model = CPU.read_model(artifact.payload)
        assert model.get_rt_info(["segdeploy", "target"]).astype(str) == artifact.manifest.target
        assert model.get_rt_info(["segdeploy", "classes"]).astype(str) == (
            '["c0","c1","c2","c3","c4"]'
        )
        text = artifact.payload.read_text()
        assert "<framework>" not in text  # What the graph that it was made from said.
        assert str(artifact.path.parent) not in text


@pytest.mark.usefixtures("artifacts")
def test_the_same_graph_gives_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """After other models in this process, and in another process."""
    graph = checkpoint.path.parent / "onnx-fp32" / "model.onnx"
    facts = {"model": "net", "classes": ["a", "b"]}
    code = f"""
import os, sys
from pathlib import Path
from segdeploy.backends.openvino import OPENVINO
from segdeploy.core.contract import IoContract
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
OPENVINO.build(BuildRequest(checkpoint=None, payload=Path({str(tmp_path)!r}, "c", "model.xml"),
    precision=Precision.FP32, io=IoContract(), graph=Path({str(graph)!r}),
    options={{"facts": {facts!r}}}))
os._exit(0)
"""
    for name in "abc":
        (tmp_path / name).mkdir()
    for name in "ab":
        OPENVINO.build(
            BuildRequest(
                checkpoint=checkpoint, payload=tmp_path / name / "model.xml",
                precision=Precision.FP32, io=IoContract(), graph=graph, options={"facts": facts},
            )
        )  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
    for file in ("model.xml", "model.bin"):
        contents = {(tmp_path / name / file).read_bytes() for name in "abc"}
        assert len(contents) == 1


@pytest.mark.parametrize("num_classes", [pytest.param(5, marks=pytest.mark.slow), 300])
def test_image_in_and_labels_out_have_the_types_of_the_manifest(
    small_net: SmallNet, num_classes: int, tmp_path: Path
) -> None:
    checkpoint = small_net(tmp_path / "checkpoint", num_classes)
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
    (outcome, _) = export(checkpoint.path, ["openvino-fp32"], tmp_path, io=io)
    session = open_session(load_artifact(outcome.path))
    assert session.inputs[0].dtype == "uint8"
    for size in SIZES:
        found = session.run(_images(*size))
        logits = open_session(checkpoint).run(_batch(*size))["logits"]
        assert {k: v.dtype.name for k, v in found.items()} == {
            spec.name: spec.dtype for spec in session.outputs
        }
        assert found["labels"].dtype == (np.uint16 if num_classes > 255 else np.uint8)
        top2 = np.sort(logits, axis=1)[:, -2:]
        is_clear = top2[:, 1] - top2[:, 0] > 1e-4
        assert (found["labels"] == logits.argmax(1))[is_clear].all()
        probability = torch.softmax(torch.from_numpy(logits), 1).amax(1).numpy()
        np.testing.assert_allclose(found["confidence"], probability, atol=1e-5)


def test_a_bound_batch_is_kept_and_runs_beside_other_batches(
    artifacts: dict[str, Artifact],
) -> None:
    session = open_session(artifacts["fp32"])
    batch = _batch(1, 33, 65)
    batch.setflags(write=False)  # It is copied, and the copy has to live as long as the call.
    call = session.bind(batch)
    wanted = session.run(batch)["logits"]
    other = session.run(_batch(2, 96, 128))["logits"]
    call()
    np.testing.assert_array_equal(session.run(batch)["logits"], wanted)
    assert other.shape[0] == 2
    session.close()
    for use in (call, lambda: session.run(batch), lambda: session.bind(batch)):
        with pytest.raises(ArtifactError, match="session is closed"):
            use()


def test_results_are_not_overwritten_by_the_next_run(artifacts: dict[str, Artifact]) -> None:
    session = open_session(artifacts["fp32"])
    first = session.run(_batch(1, 33, 65))["logits"]
    before = first.copy()
    session.run(-_batch(1, 33, 65))
    np.testing.assert_array_equal(first, before)


def test_a_bound_call_copies_no_outputs(artifacts: dict[str, Artifact]) -> None:
    session = OPENVINO.open(artifacts["fp32"])
    batch = _batch(1, 192, 256)
    size, call = session.run(batch)["logits"].nbytes, session.bind(batch)
    call()
    tracemalloc.start()  # NumPy's arrays are seen by it.
    try:
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2


def test_a_wrong_batch_is_refused_in_our_words(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(DataError, match="must be float32 of shape any x 3 x any x any"):
        open_session(artifacts["fp32"]).run(np.zeros((1, 32, 32, 3), np.float32))


def test_other_devices_are_refused(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(BackendUnavailableError, match="'cuda'"):
        open_session(artifacts["fp32"], "cuda")


def test_files_that_are_no_model_or_another_one_are_refused(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    artifact = artifacts["fp32"]
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="cannot open"):
        OPENVINO.open(dataclasses.replace(artifact, path=tmp_path))
    logits = dataclasses.replace(artifact.manifest.outputs[0], dtype="uint8")
    manifest = artifact.manifest.replace(outputs=(logits,))
    with pytest.raises(ArtifactError, match="the manifest says"):
        OPENVINO.open(dataclasses.replace(artifact, manifest=manifest))


def test_a_graph_that_openvino_cannot_read_is_a_build_error(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"garbage")
    request = BuildRequest(
        checkpoint=checkpoint, payload=tmp_path / "model.xml", precision=Precision.FP32,
        io=IoContract(), graph=tmp_path / "graph.onnx",
    )  # fmt: skip
    with pytest.raises(BuildError, match="cannot read the graph"):
        OPENVINO.build(request)


def test_int8_that_would_run_in_f32_is_not_built(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    file.write_text('[[overrides]]\nnodes = "node_*onv*"\nchoice = "weights"\n')
    with pytest.raises(BuildError, match="leaves all activations in float"):
        export(
            checkpoint.path, ["openvino-int8"], tmp_path, calibration="synthetic:96x128",
            num_calibration_images=2, int8_policy=str(file),
        )  # fmt: skip
    assert not (tmp_path / "openvino-int8").exists()


def test_threads_follow_the_environment(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDEPLOY_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert compile_settings(Precision.FP32)["INFERENCE_NUM_THREADS"] == 1
    compiled = _compiled(open_session(artifacts["fp32"]))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    monkeypatch.delenv("SEGDEPLOY_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "INFERENCE_NUM_THREADS" not in compile_settings(Precision.FP32)
