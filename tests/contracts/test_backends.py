"""Every backend, precision and model of the tables: builds, opens, runs its sizes, agrees.

Each is asked for the most that its `Limits` offer: any size, sizes within bounds, or one odd size;
and refuses the rest. The default part takes the lightest model and the quick converters, the others
are marked slow (and have tests of their own with a smaller model).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from segdeploy.backends import BACKENDS, Backend, open_session, require_backend
from segdeploy.backends.isolation import IN_PROCESS
from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import BackendUnavailableError, BuildError, UnsupportedTargetError
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.target import Precision
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.export import ExportOutcome, Size, export
from segdeploy.export.plan import plan_export
from segdeploy.graph.proto import load_graph
from segdeploy.zoo import MODELS, create_model, save_checkpoint

DATA = "synthetic:96x128"
LIGHT = "unet"
LONG = {"aoti", "executorch", "litert", "tensorrt"}
SIZES = [(1, 96, 128), (2, 104, 120), (1, 97, 131), (3, 33, 65)]
BOUNDS = SizeBounds((33, 65), (96, 128), (104, 131))
MAX_BATCH = 3
ONE_SIZE = (97, 131)
# What a converter cannot do today: it must end as a BuildError, and never as an artifact.
UNCONVERTED = {
    ("fpn_resnet34", "ncnn"): "pnnx sums a stack over another axis; ncnn dies of it",
    ("pspnet_resnet34", "coreml"): "coremltools lacks adaptive pooling to sizes that do not divide",
    ("segformer_mit_b0", "ncnn"): "pnnx's attention is nothing that ncnn can run",
}
# Root mean square difference as a share of the logits' spread, on untrained weights.
CLOSE = {Precision.FP32: 1e-4, Precision.FP16: 0.02, Precision.BF16: 0.1, Precision.INT8: 0.25}


def _save(path: Path, name: str) -> Checkpoint:
    """A checkpoint with batch norms that are not the identity."""
    torch.manual_seed(0)
    module = create_model(name, 5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    saved: Checkpoint = save_checkpoint(
        path, module, model=name, task=Task.MULTICLASS, classes=tuple("abcde"),
        preprocess=PreprocessSpec(), trained=False,
    )  # fmt: skip
    return saved


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A function from a model's name to its checkpoint, in a run folder that backends share."""
    known: dict[str, Checkpoint] = {}

    def find(model: str) -> Checkpoint:
        if model not in known:
            known[model] = _save(tmp_path_factory.mktemp("run") / "checkpoint", model)
        return known[model]

    return find


def _most(backend: Backend, model: str) -> Size:
    """What to ask a backend for: the widest sizes that it and the model offer."""
    spec = MODELS.get(model)
    if spec.is_fixed_size:
        return spec.input_size
    return None if backend.limits.dynamic else BOUNDS if backend.limits.bounded else ONE_SIZE


def _export(backend: Backend, model: str, checkpoint: Checkpoint) -> list[ExportOutcome]:
    return export(
        checkpoint.path,
        [f"{backend.name}-{precision}" for precision in backend.precisions],
        checkpoint.path.parent,
        size=_most(backend, model),
        calibration=DATA,
        num_calibration_images=4,
        max_batch=MAX_BATCH if backend.limits.bounded else 1,
    )


def _symmetric(model: str, checkpoint: Checkpoint) -> Path:
    """Return the int8 graph by the policy of TensorRT."""
    run = checkpoint.path.parent
    done = export(
        checkpoint.path, ["onnx-int8"], run, size=_most(BACKENDS.get("onnx"), model),
        calibration=DATA, num_calibration_images=4, int8_policy="tensorrt", name="symmetric",
    )  # fmt: skip
    return load_artifact(done[0].path).payload


def _sizes(artifact: Artifact) -> list[tuple[int, int, int]]:
    """Batches (N, H, W) that an artifact must take."""
    batch, _, height, width = artifact.manifest.inputs[0].shape
    sizes = SIZES if height is None or width is None else [(1, height, width), (2, height, width)]
    return list(dict.fromkeys((batch or n, h, w) for n, h, w in sizes))


def _batch(num: int, height: int, width: int) -> np.ndarray:
    image = open_dataset(DATA, "val")[0].image
    repeats = -(-height // image.shape[0]), -(-width // image.shape[1])
    image = np.tile(image, (*repeats, 1))[:height, :width]
    return np.stack([normalize_image(image, PreprocessSpec())] * num)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(m, n, marks=() if m == LIGHT and n not in LONG else pytest.mark.slow)
        for m in MODELS
        for n in BACKENDS
    ],
)
def test_every_target_of_a_model_agrees_with_eager_at_every_size(
    model: str,
    name: str,
    run_of: Callable[[str], Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = BACKENDS.get(name)
    if model != LIGHT:  # A converter or runtime may crash on what it does not know.
        monkeypatch.setenv(IN_PROCESS, "0")
    try:
        require_backend(backend)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    checkpoint = run_of(model)
    if (model, name) in UNCONVERTED:
        with pytest.raises(BuildError):
            _export(backend, model, checkpoint)
        return
    outcomes = _export(backend, model, checkpoint)
    assert len(outcomes) >= len(backend.precisions)
    reference = open_session(checkpoint)
    for outcome in outcomes:
        artifact = load_artifact(outcome.path)
        try:
            session = open_session(artifact)
        except BackendUnavailableError as error:
            pytest.skip(f"built, not run: {error}")
        assert session.inputs == artifact.manifest.inputs
        for size in _sizes(artifact):
            batch = _batch(*size)
            exact, found = reference.run(batch)["logits"], session.run(batch)["logits"]
            assert found.shape == exact.shape
            distance = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
            precision = Precision(outcome.target.rpartition("-")[2])
            assert distance < CLOSE[precision], (outcome.target, size)
        session.close()
        if outcome.target == "onnx-int8":
            _assert_int8_is_legal_for_tensorrt(_symmetric(model, checkpoint))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_what_the_limits_do_not_offer_is_refused_and_what_they_do_is_planned(
    name: str, run_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    backend, checkpoint, out = BACKENDS.get(name), run_of(LIGHT), tmp_path / "run"
    limits, target = backend.limits, f"{name}-{backend.precisions[0]}"
    asked: list[tuple[bool, IoContract, Size]] = [
        (kind in limits.inputs, IoContract(kind), ONE_SIZE) for kind in InputKind
    ]
    asked += [(kind in limits.outputs, IoContract(output=kind), ONE_SIZE) for kind in OutputKind]
    asked.append((limits.dynamic, IoContract(), None))
    asked.append((limits.dynamic or limits.bounded, IoContract(), BOUNDS))
    assert limits.inputs
    assert limits.outputs
    for is_offered, io, size in asked:
        if is_offered:
            steps = plan_export(checkpoint, [target], out, io=io, size=size, name=None)
            assert str(steps[-1].target) == target
            continue
        with pytest.raises(UnsupportedTargetError):
            export(checkpoint.path, [target], out, io=io, size=size, calibration=DATA)
    assert not out.exists()


def _assert_int8_is_legal_for_tensorrt(path: Path) -> None:
    model = load_graph(path)
    stored = {t.name: t for t in model.graph.initializer}
    assert not {t.data_type for t in stored.values()} & {TensorProto.UINT8, TensorProto.INT32}
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert pairs
    for node in pairs:
        zero = numpy_helper.to_array(stored[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_backend_says_what_it_is(name: str) -> None:
    backend = BACKENDS.get(name)
    assert backend.name == name
    assert backend.source in {"checkpoint", "onnx"}
    assert backend.precisions
    assert "/" not in backend.payload_name
