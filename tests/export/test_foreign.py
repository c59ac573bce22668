"""Foreign ONNX files: what comes out computes what the original does, and says what was understood.

The independent reference is ONNX Runtime on the original file, as its author would run it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.backends import open_session
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Artifact, load_folder
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.export import ForeignOptions, export
from segdeploy.verify import verify

SIZE = (48, 64)
UNIT = ForeignOptions(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def foreign_graph(
    opset: int = 17,
    *,
    num_classes: int = 3,
    layout: str = "nchw",
    dims: Sequence[int | str] | None = None,
    tail: Sequence[onnx.NodeProto] = (),
    result: str = "scores",
    result_type: int = TensorProto.FLOAT,
    is_coarse: bool = False,
    weights_are_inputs: bool = False,
) -> onnx.ModelProto:
    """Conv, BatchNormalization, Clip, upsampling and Conv, written as its opset writes them."""
    rng = np.random.default_rng(7)
    first = rng.normal(size=(8, 3, 3, 3)) / 3
    last = rng.normal(size=(num_classes, 8, 1, 1))
    stored = {
        "w1": first, "w2": last, "gamma": rng.uniform(0.5, 2, 8), "beta": rng.normal(size=8),
        "mean": rng.normal(size=8) / 4, "var": rng.uniform(0.5, 2, 8),
        "bias": rng.normal(size=num_classes),
    }  # fmt: skip
    made = {name: np.asarray(value, np.float32) for name, value in stored.items()}
    image = ["image"]
    nodes = []
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", image, ["moved"], perm=[0, 3, 1, 2]))
        image = ["moved"]
    nodes += [
        helper.make_node("Conv", [*image, "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"], epsilon=1e-3
        ),
    ]
    if opset < 11:
        nodes.append(helper.make_node("Clip", ["n1"], ["r1"], min=0.0, max=6.0))
    else:
        made |= {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}
        nodes.append(helper.make_node("Clip", ["n1", "zero", "six"], ["r1"]))
    factor = [1.0, 1.0, 2.0, 2.0]
    if is_coarse:
        nodes.append(helper.make_node("Identity", ["r1"], ["u1"]))
    elif opset < 9:
        nodes.append(helper.make_node("Upsample", ["r1"], ["u1"], scales=factor, mode="linear"))
    else:
        made["factor"] = np.asarray(factor, np.float32)
        kind = "Upsample" if opset == 9 else "Resize"
        inputs = ["r1", "factor"] if opset < 11 else ["r1", "", "factor"]
        if opset in (11, 12):
            made["roi"] = np.zeros(0, np.float32)
            inputs[1] = "roi"
        nodes.append(helper.make_node(kind, inputs, ["u1"], mode="linear"))
    nodes.append(helper.make_node("Conv", ["u1", "w2", "bias"], ["scores"]))
    nodes += tail
    usual = [1, 3, *SIZE] if layout == "nchw" else [1, *SIZE, 3]
    inputs_of = [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims or usual)]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in made.items()]
    if weights_are_inputs:
        inputs_of += [
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors
        ]
    graph = helper.make_graph(
        nodes, "foreign", inputs_of,
        [helper.make_tensor_value_info(result, result_type, None)], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3 if weights_are_inputs else 8
    return model


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a model as a file beside the run folder."""

    def write(model: onnx.ModelProto, name: str = "theirs.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


def run_original(path: Path, batch: NDArray[Any]) -> NDArray[np.float32]:
    """Return the first output of a file, by ONNX Runtime as anybody would use it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return found


def structured(size: tuple[int, int] = SIZE, batch: int = 1) -> NDArray[np.float32]:
    """Return normalised synthetic scenes (N, 3, H, W)."""
    scenes = open_dataset(f"synthetic:{size[0]}x{size[1]}:8", "val")
    images = np.stack([scenes[i].image for i in range(batch)]).astype(np.float32)
    return np.ascontiguousarray(((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2), np.float32)


def exported(path: Path, out: Path, options: ForeignOptions = UNIT, **more: object) -> Artifact:
    """Return the plain artifact of a file."""
    outcome = export(path, ["onnx-fp32"], out, foreign=options, **more)[0]  # type: ignore[arg-type]
    assert outcome.artifact is not None
    return outcome.artifact


def run_artifact(folder: Artifact, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(folder)
    try:
        logits: NDArray[np.float32] = session.run(batch)["logits"]
    finally:
        session.close()
    return logits


@pytest.mark.parametrize("opset", range(7, 23))
def test_every_opset_gives_what_the_original_gives(save: Save, tmp_path: Path, opset: int) -> None:
    path = save(foreign_graph(opset))
    artifact = exported(path, tmp_path / "run")
    batch = structured()
    expected = run_original(path, batch)
    found = run_artifact(artifact, batch)
    assert found.shape == expected.shape == (1, 3, *SIZE)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    model = onnx.load(str(artifact.payload))
    assert model.opset_import[0].version == max(18, opset)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Clip", "Resize"}  # No norm.
    assert verify(artifact.path).passed


SOFTMAX = helper.make_node("Softmax", ["scores"], ["shares"], axis=1)
TAILS: dict[str, tuple[list[onnx.NodeProto], str, int]] = {
    "softmax": ([SOFTMAX], "shares", TensorProto.FLOAT),
    "log_softmax": (
        [helper.make_node("LogSoftmax", ["scores"], ["out"], axis=1)], "out", TensorProto.FLOAT,
    ),
    "argmax": (
        [helper.make_node("ArgMax", ["scores"], ["out"], axis=1, keepdims=0)], "out",
        TensorProto.INT64,
    ),
    "softmax, argmax, cast": (
        [
            SOFTMAX,
            helper.make_node("ArgMax", ["shares"], ["index"], axis=1, keepdims=1),
            helper.make_node("Cast", ["index"], ["out"], to=TensorProto.UINT8),
        ],
        "out", TensorProto.UINT8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAILS)
def test_final_activation_is_left_out(save: Save, tmp_path: Path, kind: str) -> None:
    tail, result, result_type = TAILS[kind]
    path = save(foreign_graph(tail=tail, result=result, result_type=result_type))
    artifact = exported(path, tmp_path / "run")
    batch = structured()
    expected = run_original(save(foreign_graph(), "scores.onnx"), batch)
    assert np.abs(run_artifact(artifact, batch) - expected).max() < 1e-4
    facts = json.loads((tmp_path / "run" / "source" / "source.json").read_text())
    assert facts["output"] == "scores"
    assert facts["cut"]
    assert verify(artifact.path).passed


@pytest.mark.parametrize("is_only_cast", [True, False])
def test_pixels_in_labels_out(save: Save, tmp_path: Path, is_only_cast: bool) -> None:
    """As TensorFlow's DeepLab comes: uint8 NHWC in, normalised inside, int64 labels out."""
    tail = [helper.make_node("ArgMax", ["scores"], ["out"], axis=1, keepdims=0)]
    model = foreign_graph(layout="nhwc", tail=tail, result="out", result_type=TensorProto.INT64)
    graph = model.graph
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    graph.node[0].input[0] = "scaled"
    half = numpy_helper.from_array(np.asarray(127.5, np.float32), "half")
    graph.initializer.append(half)
    front = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "half"], ["scaled"]),
    ]
    if not is_only_cast:  # Something that only uint8 can do stays.
        front.insert(0, helper.make_node("Identity", ["image"], ["same"]))
        front.insert(1, helper.make_node("Max", ["same", "image"], ["most"]))
        front[2].input[0] = "most"
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path = save(model)
    with pytest.raises(ConfigError, match="takes uint8 pixels"):
        exported(path, tmp_path / "run")
    plain = ForeignOptions(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    artifact = exported(path, tmp_path / "run", plain)
    image = open_dataset("synthetic:48x64:8", "val")[0].image[None]
    labels = run_original(path, image)
    logits = run_artifact(artifact, image.transpose(0, 3, 1, 2).astype(np.float32))
    assert (logits.argmax(1) == labels).mean() > 0.999
    found = {node.op_type for node in onnx.load(str(artifact.payload)).graph.node}
    assert ("Cast" in found) is not is_only_cast
    assert verify(artifact.path).passed


@pytest.mark.parametrize("has_output_moved", [False, True])
def test_channels_last(save: Save, tmp_path: Path, has_output_moved: bool) -> None:
    move = helper.make_node("Transpose", ["scores"], ["out"], perm=[0, 2, 3, 1])
    tail, result = ([move], "out") if has_output_moved else ([], "scores")
    path = save(foreign_graph(layout="nhwc", tail=tail, result=result))
    artifact = exported(path, tmp_path / "run")
    batch = structured()
    expected = run_original(path, np.ascontiguousarray(batch.transpose(0, 2, 3, 1)))
    if has_output_moved:
        expected = np.ascontiguousarray(expected.transpose(0, 3, 1, 2))
    assert np.abs(run_artifact(artifact, batch) - expected).max() < 1e-4
    nodes = onnx.load(str(artifact.payload)).graph.node
    assert "Transpose" not in {node.op_type for node in nodes}
    assert verify(artifact.path).passed


def test_coarse_logits_are_resized_on_request(save: Save, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = save(foreign_graph(is_coarse=True))
    with pytest.raises(ConfigError, match="24x32 pixels for an image of 48x64") as caught:
        exported(path, tmp_path / "run")
    assert "--upsample" in caught.value.hint
    artifact = exported(path, tmp_path / "run", ForeignOptions(upsample=True).over(UNIT))
    batch = structured()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(run_original(path, batch)), SIZE, mode="bilinear"
    ).numpy()
    assert np.abs(run_artifact(artifact, batch) - expected).max() < 1e-4
    source = load_folder(tmp_path / "run" / "source")
    assert np.abs(open_session(source).run(batch)["logits"] - expected).max() < 1e-4
    assert verify(artifact.path).passed


def test_dynamic_sizes_stay_dynamic(save: Save, tmp_path: Path) -> None:
    dims: list[int | str] = ["H", 3, "N", "N"]  # Names mean nothing, and one stands for two sizes.
    path = save(foreign_graph(dims=dims))
    artifact = exported(path, tmp_path / "run")
    assert artifact.manifest.inputs[0].shape == (None, 3, None, None)
    batch = structured((40, 72), batch=2)
    expected = run_original(save(foreign_graph(dims=["b", 3, "h", "w"]), "free.onnx"), batch)
    assert np.abs(run_artifact(artifact, batch) - expected).max() < 1e-4
    assert verify(artifact.path).passed
    fixed = exported(path, tmp_path / "run", size=(64, 64))
    assert fixed.manifest.inputs[0].shape == (None, 3, 64, 64)
    assert verify(fixed.path).passed


def test_odd_sizes_are_resized_on_request(save: Save, tmp_path: Path) -> None:
    """Stride 2 and a doubling give 226 rows of 225: no map of the image unless it is resized."""
    path = save(foreign_graph(dims=["b", 3, "h", "w"]))
    said: list[str] = []
    strict = exported(path, tmp_path / "a", report=said.append)
    assert any("gives 226x232 for 225x231" in line for line in said)
    assert {c["name"] for c in verify(strict.path).cases} == {"images"}  # Others prove nothing.
    resized = exported(path, tmp_path / "b", ForeignOptions(upsample=True).over(UNIT))
    report = verify(resized.path)
    assert report.passed
    assert "1x225x231" in {case["name"] for case in report.cases}


def test_weights_that_are_inputs(save: Save, tmp_path: Path) -> None:
    path = save(foreign_graph(8, weights_are_inputs=True))
    artifact = exported(path, tmp_path / "run")
    assert [v.name for v in onnx.load(str(artifact.payload)).graph.input] == ["tensor"]
    assert verify(artifact.path).passed


def test_external_data_is_copied_and_embedded(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    onnx.save(
        foreign_graph(), str(path), save_as_external_data=True, location="theirs.bin",
        size_threshold=0,
    )  # fmt: skip
    artifact = exported(path, tmp_path / "run")
    source = load_folder(tmp_path / "run" / "source")
    assert list(source.manifest.files) == ["model.onnx", "theirs.bin", "source.json"]
    assert source.payload.read_bytes() == path.read_bytes()
    assert [file.name for file in artifact.path.glob("*.bin")] == []
    assert verify(artifact.path).passed


def test_two_outputs_need_a_name_and_inner_tensors_can_be_named(save: Save, tmp_path: Path) -> None:
    model = foreign_graph()
    model.graph.output.append(helper.make_tensor_value_info("n1", TensorProto.FLOAT, None))
    path = save(model)
    with pytest.raises(ConfigError, match="2 outputs; its outputs are: 'scores'") as caught:
        exported(path, tmp_path / "run")
    assert "--output-name" in caught.value.hint
    artifact = exported(path, tmp_path / "run", ForeignOptions(output_name="scores").over(UNIT))
    assert verify(artifact.path).passed
    inner = ForeignOptions(output_name="u1").over(UNIT)
    assert exported(path, tmp_path / "other", inner).manifest.classes == tuple(
        f"class_{k}" for k in range(8)
    )


def test_local_functions_are_inlined(save: Save, tmp_path: Path) -> None:
    call = helper.make_node("Halve", ["scores"], ["out"], domain="theirs")
    body = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Div", ["x", "two"], ["y"]),
    ]
    model = foreign_graph(tail=[call], result="out")
    own = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("theirs", "Halve", ["x"], ["y"], body, own))
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    path = save(model)
    artifact = exported(path, tmp_path / "run")
    batch = structured()
    expected = run_original(path, batch)
    assert np.abs(run_artifact(artifact, batch) - expected).max() < 1e-4


def test_one_channel_is_binary_and_300_are_uint16(save: Save, tmp_path: Path) -> None:
    binary = exported(save(foreign_graph(num_classes=1)), tmp_path / "one")
    assert binary.manifest.task is Task.BINARY
    assert binary.manifest.classes == ("foreground",)
    assert verify(binary.path).passed
    path = save(foreign_graph(num_classes=300))
    labels = exported(path, tmp_path / "many", io=IoContract(output=OutputKind.LABELS))
    assert labels.manifest.outputs[0].dtype == "uint16"
    found = open_session(labels).run(structured())["labels"]
    assert (found == run_original(path, structured()).argmax(1)).mean() > 0.999
    assert verify(labels.path).passed


def test_sigmoid_over_classes_asks_what_it_means(save: Save, tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["scores"], ["out"])
    path = save(foreign_graph(tail=[node], result="out"))
    with pytest.raises(ConfigError, match="sigmoid over 3 channels") as caught:
        exported(path, tmp_path / "run")
    assert "--task multilabel" in caught.value.hint
    chosen = ForeignOptions(task=Task.MULTILABEL).over(UNIT)
    artifact = exported(path, tmp_path / "run", chosen)
    assert artifact.manifest.task is Task.MULTILABEL
    assert verify(artifact.path).passed


def test_fp16_and_int8_are_made_of_it(save: Save, tmp_path: Path) -> None:
    path, run = save(foreign_graph(12, num_classes=5)), tmp_path / "run"
    data = "synthetic:48x64:16"
    done = export(
        path, ["onnx-fp16", "onnx-int8"], run, foreign=UNIT, calibration=data, int8_policy="all",
        num_calibration_images=4,
    )  # fmt: skip
    assert [outcome.parent for outcome in done] == ["onnx-fp32", "onnx-fp32", "source"]
    for outcome in done:
        report = verify(outcome.path, data=data)
        assert report.num_pixels
        assert report.reference.startswith("original-onnx@")
        assert not [f for f in report.failures if f.rule == "runs"]
    assert verify(done[0].path).passed
