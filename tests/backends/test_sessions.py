"""Sessions: what they refuse, in the same words for every runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from segdeploy.backends import open_session
from segdeploy.backends.onnx_providers import open_runtime
from segdeploy.backends.predictor import Predictor
from segdeploy.backends.pytorch import ModuleSession
from segdeploy.core.contract import IoContract, TensorSpec, contract_tensors
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, ConfigError, DataError
from segdeploy.core.folder import Artifact
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, normalize_image
from segdeploy.core.task import Task

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")


def _module_session(num_logits: int = 3, task: Task = Task.MULTICLASS) -> ModuleSession:
    torch.manual_seed(0)
    inputs, outputs = contract_tensors(IoContract(), task, num_logits, None)
    return ModuleSession(nn.Conv2d(3, num_logits, 3, padding=1), inputs, outputs)


def _artifact(folder: Path, target: str, payload: bytes, name: str) -> Artifact:
    (folder / name).write_bytes(payload)
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    manifest = Manifest(
        kind="artifact", model="tiny", task=Task.MULTICLASS, classes=("a", "b", "c"),
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={name: ""},
        target=target,
    )  # fmt: skip
    return Artifact(folder, manifest)


def _identity(input_name: str = "tensor") -> bytes:
    sides: list[str | int | None] = ["N", 3, "H", "W"]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [input_name], ["logits"])],
        "identity",
        [value(input_name, TensorProto.FLOAT, sides)],
        [value("logits", TensorProto.FLOAT, sides)],
    )
    opsets = [helper.make_opsetid("", 18)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        np.float32(1),
    ],
    ids=["float64", "uint8", "no-batch", "nhwc", "empty", "scalar"],
)
def test_a_wrong_batch_is_refused_by_every_session(batch: np.ndarray, tmp_path: Path) -> None:
    onnx_session = open_session(_artifact(tmp_path, "onnx-fp32", _identity(), "model.onnx"))
    for session in (_module_session(), onnx_session):
        for use in (session.run, session.bind):
            with pytest.raises(DataError, match="must be float32 of shape any x 3 x any x any"):
                use(batch)


def test_batches_that_are_views_or_read_only_are_taken(tmp_path: Path) -> None:
    session = open_session(_artifact(tmp_path, "onnx-fp32", _identity(), "model.onnx"))
    base = np.random.default_rng(0).standard_normal((2, 3, 32, 80)).astype(np.float32)
    view = base[..., ::2]
    view.setflags(write=False)
    np.testing.assert_array_equal(session.run(view)["logits"], view)
    live = _module_session()
    np.testing.assert_array_equal(
        live.run(view)["logits"], live.run(np.array(view, order="C"))["logits"]
    )


def test_a_module_in_training_mode_is_run_in_evaluation_mode() -> None:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.9)).train()
    before = [b.clone() for b in module.buffers()]
    session = ModuleSession(module, inputs, outputs)
    batch = np.ones((2, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(session.run(batch)["logits"], session.run(batch)["logits"])
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_device_is_named(device: str, tmp_path: Path) -> None:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    with pytest.raises(BackendUnavailableError, match=device) as caught:
        ModuleSession(nn.Identity(), inputs, outputs, device)
    assert caught.value.exit_code == 4
    with pytest.raises(BackendUnavailableError):
        open_session(_artifact(tmp_path, "onnx-fp32", _identity(), "model.onnx"), device)


def test_a_device_of_no_known_kind_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tpu"):
        open_session(_artifact(tmp_path, "onnx-fp32", _identity(), "model.onnx"), "tpu")


@pytest.mark.parametrize(
    ("target", "name"), [("onnx-fp32", "model.onnx"), ("onnx-int8", "model.onnx"),
                         ("torchscript-fp32", "model.ts")],
)  # fmt: skip
@pytest.mark.parametrize("payload", [b"", b"garbage" * 100], ids=["empty", "garbage"])
def test_an_unreadable_payload_is_an_artifact_error(
    target: str, name: str, payload: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=name):
        open_session(_artifact(tmp_path, target, payload, name))


def test_a_graph_that_contradicts_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the manifest says"):
        open_session(_artifact(tmp_path, "onnx-fp32", _identity("pixels"), "model.onnx"))


def test_a_graph_that_fails_while_running_is_an_artifact_error(tmp_path: Path) -> None:
    model = onnx.load_from_string(_identity())
    model.graph.node[0].CopyFrom(
        helper.make_node("Reshape", ["tensor", "sizes"], ["logits"], name="bad")
    )
    model.graph.initializer.append(
        helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 3, 7, 7])
    )
    session = open_session(
        _artifact(tmp_path, "onnx-fp32", model.SerializeToString(), "model.onnx")
    )
    with pytest.raises(ArtifactError, match="cannot run a batch"):
        session.run(np.zeros((1, 3, 32, 32), np.float32))


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGDEPLOY_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    runtime = open_runtime(_identity(), "cpu", "a graph")
    assert runtime.get_session_options().intra_op_num_threads == 1


def test_a_prediction_has_the_image_s_own_size_and_undoes_the_resize() -> None:
    class Threshold(nn.Module):
        """Class 1 where the red channel is bright."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], dim=1)

    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 2, None)
    image = np.zeros((90, 60, 3), np.uint8)
    image[30:60, 10:40, 0] = 255
    for rule in (SizeRule.KEEP, SizeRule.FIXED, SizeRule.LETTERBOX):
        size = None if rule is SizeRule.KEEP else (180, 180)
        spec = PreprocessSpec(size_rule=rule, size=size, pad_value=0)
        with Predictor(
            ModuleSession(Threshold(), inputs, outputs), spec, Task.MULTICLASS
        ) as predictor:
            found = predictor.predict(image)
        assert found.labels.dtype == np.uint8
        assert found.confidence is None
        np.testing.assert_array_equal(found.labels, (image[..., 0] > 128).astype(np.uint8))


def test_a_predictor_without_a_folder_has_no_manifest() -> None:
    predictor = Predictor(_module_session(), PreprocessSpec(), Task.MULTICLASS)
    with pytest.raises(ValueError, match="not opened from a folder"):
        _ = predictor.manifest


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8), "picture.png",
    ],
    ids=["grey", "rgba", "float", "empty", "name"],
)  # fmt: skip
def test_what_is_no_image_is_refused(image: object) -> None:
    predictor = Predictor(_module_session(), PreprocessSpec(), Task.MULTICLASS)
    with pytest.raises(DataError, match="uint8 RGB"):
        predictor.predict(image)  # type: ignore[arg-type]


def test_an_onnx_artifact_opens_where_torch_and_onnx_are_absent(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(_identity())
    code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = sys.modules["onnx"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda n, *a: None if n in ("torch", "onnx") else real(n, *a)
from pathlib import Path
import numpy as np
from segdeploy.backends import open_session
from segdeploy.backends.predictor import Predictor
from segdeploy.core.contract import *
from segdeploy.core.folder import Artifact
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
manifest = Manifest(kind="artifact", model="m", task=Task.MULTICLASS, classes=("a", "b", "c"),
    preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={{"model.onnx": ""}},
    target="onnx-int8")
session = open_session(Artifact(Path({str(tmp_path)!r}), manifest))
found = Predictor(session, PreprocessSpec(), Task.MULTICLASS).predict(
    np.full((40, 50, 3), (0, 0, 255), np.uint8))
print(int(found.labels.min()), found.labels.shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2 (40, 50)"


def test_image_contract_of_a_session_takes_uint8_nhwc_only() -> None:
    spec = TensorSpec("image", "uint8", (None, None, None, 3))
    session = ModuleSession(
        nn.Identity(), [spec], contract_tensors(IoContract(), Task.MULTICLASS, 3, None)[1]
    )
    with pytest.raises(DataError, match="'image' must be uint8"):
        session.run(normalize_image(np.zeros((8, 8, 3), np.uint8), PreprocessSpec())[None])
