"""Deliberately broken and extreme inputs, through the real command line.

Each ends in an error of our tree (exit 1, 2 or 4, no traceback) or in a correct artifact; and the
run folder holds whole folders or does not exist. A few run again with every converter and runtime
in a child process, where a crash of foreign code would show as one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.folder import load_folder

FLAGS = ("--scale", "1", "--mean", "0,0,0", "--std", "255,255,255")
SIZE = (32, 40)
Make = Callable[[Path], Path]
Cli = Callable[..., tuple[int, str, str]]


def weight(*shape: int, name: str = "w") -> onnx.TensorProto:
    values = np.random.default_rng(3).normal(size=shape) / 3
    return numpy_helper.from_array(values.astype(np.float32), name)


def conv_graph(
    *,
    channels: int = 3,
    classes: int = 3,
    dims: list[int | str] | None = None,
    kind: int = TensorProto.FLOAT,
    tail: list[onnx.NodeProto] | None = None,
    output: str = "y",
    output_kind: int = TensorProto.FLOAT,
    stored: list[onnx.TensorProto] | None = None,
    opset: int = 17,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Return one 3x3 convolution, and what follows it."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), *(tail or [])]
    graph = helper.make_graph(
        nodes, "broken",
        [helper.make_tensor_value_info("x", kind, dims or [1, channels, *SIZE])],
        [helper.make_tensor_value_info(output, output_kind, None)],
        [weight(classes, channels, 3, 3), *(stored or [])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def saved(model: onnx.ModelProto) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


def content(data: bytes, name: str = "model.onnx") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def external(location: str, *, size: int | None, dims: tuple[int, ...] = (3, 3, 3, 3)) -> Make:
    """Return a file whose weights lie in `location`, which has `size` bytes (a sparse file)."""
    model = conv_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = dims
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)

    def make(folder: Path) -> Path:
        if size is not None:
            with (folder / location).open("wb") as file:
                file.truncate(size)
        return saved(model)(folder)

    return make


def huge_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # Sparse: takes no room.
    return path


def edited(change: Callable[[onnx.ModelProto], None], **options: object) -> Make:
    model = conv_graph(**options)  # type: ignore[arg-type]
    change(model)
    return saved(model)


def spoil(value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(model.graph.initializer[0]).copy()
        values.flat[5] = value
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))

    return change


def if_node() -> onnx.NodeProto:
    branches = [
        helper.make_graph(
            [node(kind, "y", f"{kind}_out")], kind, [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]  # fmt: skip
    return node("If", "bright", "out", then_branch=branches[0], else_branch=branches[1])


def cut_short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-8]


def lie_about_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20, 3, 3]


def twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Relu", "x", "y"))


def loop_back(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    model.graph.node.append(node("Add", "y z", "out"))
    model.graph.output[0].name = "out"


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def no_inputs(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


def lie_about_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7, 5, 5])
    )


FP16 = [node("Cast", "y", "h", to=TensorProto.FLOAT16), node("Relu", "h", "r")]
SHAPE = numpy_helper.from_array(np.asarray([1, 3, -1], np.int64), "shape")
BRIGHT = numpy_helper.from_array(np.asarray(True), "bright")
SCALE = [
    numpy_helper.from_array(np.asarray(0.1, np.float32), "scale"),
    numpy_helper.from_array(np.asarray(0, np.int8), "zero"),
]  # fmt: skip
QDQ = [node("QuantizeLinear", "y scale zero", "q"), node("DequantizeLinear", "q scale zero", "out")]


@dataclass(frozen=True)
class Case:
    """A file, further flags, the exit code, and what the message must say ("" of a success)."""

    name: str
    make: Make
    code: int
    words: str = ""
    flags: tuple[str, ...] = ()


CASES = (
    Case("zero-byte file", content(b""), 2, "is empty"),
    Case("text file", content(b"not a model\n" * 50), 2, "not an ONNX file"),
    Case("corrupt protobuf", content(bytes(range(256)) * 40), 2, "not an ONNX file"),
    Case("truncated protobuf", content(conv_graph().SerializeToString()[:-90]), 2, "not an ONNX"),
    Case("PyTorch file", content(b"PK\x03\x04" + b"x" * 99, "model.pt"), 2, "segdeploy import"),
    Case("no such file", lambda folder: folder / "absent.onnx", 2, "no such file"),
    Case("a folder", lambda folder: folder, 2, "manifest.json"),
    Case("file beyond 2 GiB", huge_file, 2, "3.0 GiB; one ONNX file holds 2 GiB"),
    Case("weights beyond 2 GiB", external("w.bin", size=3 * 2**30, dims=(3, 3, 2**14, 2**14)),
         2, "one ONNX file holds 2 GiB"),
    Case("external data missing", external("w.bin", size=None), 2, "w.bin, which is missing"),
    Case("external data short", external("w.bin", size=10), 2, "w.bin of "),
    Case("external data elsewhere", external("../w.bin", size=None), 2, "not beside it"),
    Case("external data with a name of ours", external("Parity.json", size=324), 2,
         "keeps weights in Parity.json"),
    Case("empty graph", edited(no_nodes), 2, "holds no graph"),
    Case("no outputs", edited(no_outputs), 2, "0 outputs"),
    Case("no inputs", edited(no_inputs), 2, "0 inputs"),
    Case("unknown operator", saved(conv_graph(tail=[node("Frobnicate", "y", "out")],
         output="out")), 2, "does not know at opset 17: Frobnicate"),
    Case("custom domain", saved(conv_graph(tail=[helper.make_node("Magic", ["y"], ["out"],
         domain="acme")], output="out", domains=("acme",))), 2, "acme:Magic"),
    Case("control flow", saved(conv_graph(tail=[if_node()], output="out", stored=[BRIGHT])), 2,
         "control flow: If"),
    Case("future opset", saved(conv_graph(opset=99)), 4, "opset 99"),
    Case("ancient opset", saved(conv_graph(opset=1)), 0),
    Case("NaN weights", edited(spoil(float("nan"))), 2, "not finite: w"),
    Case("infinite weights", edited(spoil(float("inf"))), 2, "not finite: w"),
    Case("weights cut short", edited(cut_short), 2, "damaged"),
    Case("weights of absurd size", edited(lie_about_dims), 2, "GiB"),
    Case("tensor made twice", edited(twice), 2, "model.onnx"),
    Case("a cycle", edited(loop_back), 2, "model.onnx"),
    Case("output that lies about its shape", edited(lie_about_output), 0),
    Case("two inputs", edited(second_input), 2, "2 inputs"),
    Case("two inputs, one named", edited(second_input), 2, "depends on the inputs",
         ("--input-name", "x")),
    Case("wrong input name", saved(conv_graph()), 2, "no input 'img'; its inputs are: 'x' float32",
         ("--input-name", "img")),
    Case("wrong output name", saved(conv_graph()), 2, "no tensor 'seg'", ("--output-name", "seg")),
    Case("one-channel model", saved(conv_graph(channels=1)), 2, "has 1 channels"),
    Case("four-channel model", saved(conv_graph(channels=4)), 2, "has 4 channels"),
    Case("channels not told", saved(conv_graph(dims=["n", "c", "h", "w"])), 2, "--layout nchw"),
    Case("channels told", saved(conv_graph(dims=["n", "c", "h", "w"])), 0, "",
         ("--layout", "nchw", "--size", "32x40")),
    Case("wrong layout", saved(conv_graph()), 2, "channels", ("--layout", "nhwc")),
    Case("rank-3 input", saved(conv_graph(dims=[3, *SIZE])), 2, "four dimensions"),
    Case("dynamic rank of the output", saved(conv_graph(tail=[node("Reshape", "y shape", "out")],
         output="out", stored=[SHAPE])), 2, "float32 of shape 1 x 3 x 1280"),
    Case("uint8 input", saved(conv_graph(kind=TensorProto.UINT8)), 2, "takes uint8 pixels"),
    Case("int64 input", saved(conv_graph(kind=TensorProto.INT64)), 2, "found 'x' int64"),
    Case("float16 input", saved(conv_graph(kind=TensorProto.FLOAT16)), 2, "model.onnx"),
    Case("float16 inside", saved(conv_graph(tail=[*FP16, node("Cast", "r", "out",
         to=TensorProto.FLOAT)], output="out")), 2, "computes in float16"),
    Case("quantised already", saved(conv_graph(tail=QDQ, output="out", stored=SCALE)), 2,
         "quantised already"),
    Case("integer output", saved(conv_graph(tail=[node("Cast", "y", "i", to=TensorProto.INT32),
         node("Abs", "i", "out")], output="out", output_kind=TensorProto.INT32)), 2, "is int32"),
    Case("batch of -1", saved(conv_graph(dims=[-1, 3, *SIZE])), 0),
    Case("input of absurd size", saved(conv_graph(dims=[1, 3, 2**40, 40])), 2, "larger than 16384"),
    Case("attribute out of bounds", saved(conv_graph(tail=[node("Pad", "y", "out")],
         output="out")), 2, "model.onnx"),
    Case("baked-in batch", saved(conv_graph(dims=[4, 3, *SIZE])), 2, "fixed batch of 4"),
    Case("half dynamic", saved(conv_graph(dims=[1, 3, 32, "w"])), 2, "half dynamic"),
    Case("probabilities without an end", saved(conv_graph(tail=[
         node("Softmax", "y", "s", axis=1), node("Abs", "s", "out")], output="out")), 2,
         "looks like probabilities"),
    Case("yes and no without an end", saved(conv_graph(tail=[
         node("Sigmoid", "y", "s"), node("Abs", "s", "out")], output="out")), 2,
         "looks like probabilities", ("--task", "multilabel")),
    Case("between 0 and 1 by chance", saved(conv_graph(tail=[
         node("Sin", "y", "s"), node("Abs", "s", "out")], output="out")), 0, ""),
    Case("softmax over rows", saved(conv_graph(tail=[node("Softmax", "y", "out", axis=2)],
         output="out")), 2, "Softmax over axis 2 of 'y'"),
    Case("argmax over rows, layout given", saved(conv_graph(tail=[
         node("ArgMax", "y", "out", axis=-2)], output="out", output_kind=TensorProto.INT64)), 2,
         "ArgMax over axis 2", ("--output-layout", "nchw")),
    Case("vector output", saved(conv_graph(tail=[node("GlobalAveragePool", "y", "out")],
         output="out")), 2, "no map of it"),
    Case("K = 1", saved(conv_graph(classes=1)), 0, "", ("--output", "labels")),
    Case("K = 300", saved(conv_graph(classes=300)), 0, "", ("--output", "labels")),
    Case("too few class names", saved(conv_graph()), 2, "2 class names were given",
         ("--classes", "a,b")),
    Case("class name twice", saved(conv_graph()), 2, "unique", ("--classes", "a,b,b")),
    Case("binary of three", saved(conv_graph()), 2, "binary task has 1", ("--task", "binary")),
    Case("another size", saved(conv_graph()), 2, "takes 32x40 only", ("--size", "64x64")),
    Case("zero std", saved(conv_graph()), 2, "std must be positive", ("--std", "1,0,1")),
    Case("target without a source", saved(conv_graph()), 2, "made from a PyTorch module",
         ("--target", "torchscript-fp32")),
    Case("int8 without images", saved(conv_graph()), 2, "--calibration",
         ("--target", "onnx-int8")),
)  # fmt: skip


def check_case(case: Case, cli: Cli, folder: Path) -> None:
    given, run = folder / "given", folder / "run"
    given.mkdir()
    path = case.make(given)
    line = ["export", str(path), "--out", str(run), "--json"]
    targets = [] if "--target" in case.flags else ["--target", "onnx-fp32"]
    code, out, err = cli(*line, *FLAGS, *targets, *case.flags)
    assert "Traceback" not in err
    assert code == case.code, err
    assert case.words in err
    if code != 0:
        assert json.loads(out)["error"]["exit_code"] == code
        assert not run.exists()
        return
    assert_whole(run)
    assert all(load_folder(found).manifest.passed for found in run.glob("onnx-*"))


def assert_whole(run: Path) -> None:
    """Check that a run folder holds complete model folders only, and no temporary ones."""
    for found in run.iterdir():
        assert not found.name.startswith((".", "tmp")), found
        assert load_folder(found).manifest.files


def test_there_are_thirty() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_broken_file(case: Case, cli: Cli, tmp_path: Path) -> None:
    check_case(case, cli, tmp_path)


def test_a_child_that_dies_is_an_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDEPLOY_IN_PROCESS", "0")
    monkeypatch.setattr("segdeploy.backends.isolation.WORKER", "no_such_worker")
    case = Case("child", saved(conv_graph()), 2, "cannot be read or run: the process")
    check_case(case, cli, tmp_path)


ISOLATED = ("corrupt protobuf", "weights of absurd size", "a cycle", "K = 1")


@pytest.mark.parametrize("name", ISOLATED)
def test_broken_file_with_children(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGDEPLOY_IN_PROCESS", "0")
    check_case(next(case for case in CASES if case.name == name), cli, tmp_path)
