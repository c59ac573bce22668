"""Passes that make a foreign graph plain, each against ONNX Runtime on the graph before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.graph.constant_folding import fold_constants
from segdeploy.graph.ends import keep_path, name_nodes, wrap_ends
from segdeploy.graph.fold_batch_norm import fold_batch_norm
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.label_output import add_label_output
from segdeploy.graph.proto import tensor_names
from segdeploy.graph.tail import find_tail
from segdeploy.graph.transposes import merge_transposes

Sides = list[int | str]


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(","), outputs.split(","), **attributes)


def graph_of(
    nodes: list[onnx.NodeProto],
    *,
    dims: Sides | None = None,
    outputs: tuple[str, ...] = ("y",),
    **stored: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims or [1, 4, 6, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    typed = onnx.shape_inference.infer_shapes(model).graph.output  # A pass checks what it gets.
    for value, found in zip(model.graph.output, typed, strict=True):
        value.CopyFrom(found)
    return model


def run(model: onnx.ModelProto, shape: tuple[int, ...] = (1, 4, 6, 8)) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def kinds(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


RNG = np.random.default_rng(5)
NORM: dict[str, Any] = {
    "g": RNG.uniform(0.5, 2, 6).astype(np.float32), "b": RNG.normal(size=6).astype(np.float32),
    "m": RNG.normal(size=6).astype(np.float32), "v": RNG.uniform(0.5, 2, 6).astype(np.float32),
}  # fmt: skip
WEIGHT = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)
BATCH_NORM = node("BatchNormalization", "c,g,b,m,v", "y", epsilon=1e-3)


@pytest.mark.parametrize("has_bias", [False, True])
def test_batch_norm_goes_into_the_convolution(has_bias: bool) -> None:
    inputs = "x,w,k" if has_bias else "x,w"
    model = graph_of([node("Conv", inputs, "c"), BATCH_NORM], w=WEIGHT, k=BIAS, **NORM)
    folded = fold_batch_norm(model)
    assert kinds(folded) == ["Conv"]
    assert len(folded.graph.initializer) == 2
    assert np.abs(run(folded) - run(model)).max() < 1e-5


def test_batch_norm_goes_into_a_transposed_convolution() -> None:
    weight = RNG.normal(size=(4, 6, 2, 2)).astype(np.float32)
    nodes = [node("ConvTranspose", "x,w", "c", strides=[2, 2]), BATCH_NORM]
    model = graph_of(nodes, w=weight, **NORM)
    folded = fold_batch_norm(model)
    assert kinds(folded) == ["ConvTranspose"]
    assert np.abs(run(folded) - run(model)).max() < 1e-5


def test_shared_weights_are_folded_apart() -> None:
    nodes = [
        node("Conv", "x,w", "c"), node("BatchNormalization", "c,g,b,m,v", "p"),
        node("Conv", "x,w", "d"), node("BatchNormalization", "d,b2,b,m,v", "q"),
        node("Add", "p,q", "y"),
    ]  # fmt: skip
    model = graph_of(nodes, w=WEIGHT, b2=NORM["g"] * 2, **NORM)
    folded = fold_batch_norm(model)
    assert kinds(folded) == ["Conv", "Conv", "Add"]
    assert np.abs(run(folded) - run(model)).max() < 1e-4


@pytest.mark.parametrize("what", ["read twice", "an output", "before", "weights computed"])
def test_batch_norm_that_must_stay(what: str) -> None:
    convolution = node("Conv", "x,w", "c")
    stored: dict[str, Any] = {"w": WEIGHT, **NORM}
    outputs: tuple[str, ...] = ("y",)
    nodes = [convolution, BATCH_NORM]
    if what == "read twice":
        nodes = [convolution, node("BatchNormalization", "c,g,b,m,v", "n"), node("Add", "n,c", "y")]
    elif what == "an output":
        outputs = ("y", "c")
    elif what == "before":  # Padding is zero behind the norm, not before it.
        stored = {"w": WEIGHT, **{n: v[:4] for n, v in NORM.items()}}
        nodes = [
            node("BatchNormalization", "x,g,b,m,v", "n"),
            node("Conv", "n,w", "y", pads=[1, 1, 1, 1]),
        ]
    else:
        nodes = [node("Neg", "w", "z"), node("Conv", "x,z", "c"), BATCH_NORM]
    model = graph_of(nodes, outputs=outputs, **stored)
    kept = fold_batch_norm(model)
    assert kinds(kept) == kinds(model)
    assert (run(kept) == run(model)).all()


def test_shape_arithmetic_of_a_fixed_size_is_folded() -> None:
    nodes = [
        node("Shape", "x", "s"), node("Slice", "s,two,four", "hw"), node("Mul", "hw,twice", "big"),
        node("Slice", "s,zero,two", "nc"), node("Concat", "nc,big", "sizes", axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["r"], mode="linear"),
        node("Identity", "r", "i"), node("Shape", "i", "s2"), node("Cast", "s2", "f", to=1),
        node("ReduceProd", "f", "n", keepdims=0), node("Div", "i,n", "y"),
    ]  # fmt: skip
    ends = {"zero": [0], "two": [2], "four": [4], "twice": [2, 2]}
    stored: dict[str, Any] = {name: np.asarray(value, np.int64) for name, value in ends.items()}
    model = graph_of(nodes, **stored)
    folded = fold_constants(model)
    assert kinds(folded) == ["Resize", "Div"]
    assert (run(folded) == run(model)).all()
    free = fold_constants(graph_of(nodes, dims=["n", 4, "h", "w"], **stored))
    assert "Shape" in kinds(free)  # Depends on the image.
    assert (run(free, (2, 4, 5, 7)) == run(graph_of(nodes, dims=["n", 4, "h", "w"], **stored),
            (2, 4, 5, 7))).all()  # fmt: skip


def test_weights_behind_constant_cast_and_identity_are_found() -> None:
    half = numpy_helper.from_array(WEIGHT.astype(np.float16), "half")
    nodes = [
        helper.make_node("Constant", [], ["h"], value=half), node("Cast", "h", "w", to=1),
        node("Identity", "w", "w2"), node("Dropout", "x", "d"), node("Conv", "d,w2", "y"),
    ]  # fmt: skip
    model = graph_of(nodes)
    folded = fold_constants(model)
    assert kinds(folded) == ["Conv"]
    assert (run(folded) == run(model)).all()


def test_random_and_heavy_nodes_are_not_folded() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[1, 4, 6, 8]),
        node("Conv", "k,w", "c"), node("ReduceMax", "c", "top", keepdims=0),
        node("Add", "x,r", "a"), node("Add", "a,top", "y"),
    ]  # fmt: skip
    model = graph_of(nodes, w=WEIGHT, k=RNG.normal(size=(1, 4, 6, 8)).astype(np.float32))
    assert {"RandomNormal", "Conv"} <= set(kinds(fold_constants(model)))


def test_transposes_that_undo_each_other_go() -> None:
    there, back = (0, 2, 3, 1), (0, 3, 1, 2)
    nodes = [
        node("Transpose", "x", "a", perm=there), node("Transpose", "a", "b", perm=back),
        node("Relu", "b", "c"), node("Transpose", "c", "d", perm=there),
        node("Transpose", "d", "e", perm=(0, 2, 1, 3)), node("Sigmoid", "e", "y"),
    ]  # fmt: skip
    model = graph_of(nodes)
    merged = merge_transposes(model)
    assert kinds(merged) == ["Relu", "Transpose", "Sigmoid"]
    assert (run(merged) == run(model)).all()


def test_transpose_with_other_readers_and_at_the_output() -> None:
    there, back = (0, 2, 3, 1), (0, 3, 1, 2)
    nodes = [
        node("Transpose", "x", "a", perm=there), node("Relu", "a", "z"),
        node("Transpose", "a", "y", perm=back),
    ]  # fmt: skip
    model = graph_of(nodes, outputs=("y", "z"))
    merged = merge_transposes(model)
    assert kinds(merged) == ["Transpose", "Relu", "Identity"]
    assert (run(merged) == run(model)).all()


def test_tail_is_followed_to_the_logits() -> None:
    tail = [
        node("Softmax", "x", "p", axis=-1), node("Transpose", "p", "t", perm=(0, 3, 1, 2)),
        node("ArgMax", "t", "i", axis=1), node("Squeeze", "i", "y"),
    ]  # fmt: skip
    found = find_tail(graph_of(tail), "y")
    assert (found.tensor, found.axis) == ("x", 3)
    assert found.cut == ("Squeeze", "ArgMax", "Transpose", "Softmax")
    resized = [node("Softmax", "x", "p", axis=1), node("Abs", "p", "y")]
    assert find_tail(graph_of(resized), "y").tensor == "y"  # Abs is no end that may be cut.
    moved = find_tail(graph_of([node("Transpose", "x", "y", perm=(0, 3, 1, 2))]), "y")
    assert (moved.tensor, moved.cut) == ("y", ())
    assert find_tail(graph_of([node("Softmax", "x", "y")]), "y").axis == 3
    assert find_tail(graph_of([node("ArgMax", "x", "y")]), "y").axis == 0


def test_logits_have_their_rows_and_columns_as_before_a_transpose_for_the_softmax() -> None:
    """As PyTorch writes a softmax over classes up to opset 12."""
    tail = [
        node("Relu", "x", "r"), node("Transpose", "r", "t", perm=(0, 3, 2, 1)),
        node("Softmax", "t", "p", axis=3), node("Transpose", "p", "y", perm=(0, 3, 2, 1)),
    ]  # fmt: skip
    found = find_tail(graph_of(tail), "y")
    assert (found.tensor, found.axis, found.cut) == ("r", 1, ("Transpose", "Softmax"))


def test_ends_get_their_names_also_where_those_are_taken() -> None:
    nodes = [
        node("Relu", "x", "logits"),
        node("Neg", "logits", "tensor"),
        node("Exp", "tensor", "y"),
    ]
    model = graph_of(nodes)
    wrapped = wrap_ends(keep_path(model, "x", "y"))
    assert [v.name for v in [*wrapped.graph.input, *wrapped.graph.output]] == ["tensor", "logits"]
    assert (run(wrapped) == run(model)).all()
    named = name_nodes(wrapped)
    assert len({n.name for n in named.graph.node}) == 3


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.BINARY])
def test_no_inner_tensor_has_a_name_of_the_image_and_labels_contracts(task: Task) -> None:
    spec = PreprocessSpec(scale=0.5, mean=(1, 2, 3), std=(4, 5, 6), channel_order="bgr")
    sides: Sides = [1, 3, 6, 8]
    count = 1 if task is Task.BINARY else 3

    def finish(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.output[0].type.tensor_type.shape.CopyFrom(shape)
        taken = add_image_input(model, spec)
        return add_label_output(taken, task, count, confidence=True)

    shape = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, count, 6, 8]).tensor_type.shape
    w = np.ones((count, 3, 1, 1), np.float32)
    plain = wrap_ends(keep_path(graph_of([node("Conv", "x,w", "y")], dims=sides, w=w), "x", "y"))
    names = set(tensor_names(finish(plain).graph))
    chain = [*sorted(names - {"w"}), "last"]
    nodes = [node("Relu", a, b) for a, b in zip(["x", *chain], chain, strict=False)]
    nodes.append(node("Conv", "last,w", "y"))
    theirs = graph_of(nodes, dims=sides, w=w)
    onnx.checker.check_model(finish(wrap_ends(keep_path(theirs, "x", "y"))), full_check=True)


def test_path_leaves_out_what_the_output_does_not_need() -> None:
    nodes = [node("Relu", "x", "a"), node("Neg", "a", "y"), node("Exp", "a", "aux")]
    model = graph_of(nodes, outputs=("y", "aux"))
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    kept = keep_path(model, "x", "y")
    assert kinds(kept) == ["Relu", "Neg"]
    assert [v.name for v in kept.graph.input] == ["x"]
    with pytest.raises(BuildError, match="depends on the inputs 'x', not 'other'"):
        keep_path(model, "other", "y")
