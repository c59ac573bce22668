"""Folding the normalisation: the same answer within rounding, at the borders of the image too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.errors import BuildError
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.graph.fold_normalization import fold_normalization
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.label_output import add_label_output
from segdeploy.graph.proto import initializers, producers, to_array

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]

RGB = PreprocessSpec()
BGR = PreprocessSpec(channel_order="bgr", scale=1.0, mean=(103.5, 116.3, 123.7), std=(57, 58, 59))
TF = PreprocessSpec(scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))
RAW = PreprocessSpec(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SPECS = {"rgb": RGB, "bgr": BGR, "tf": TF, "raw": RAW}


def _model(*, convolutions: int = 1, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """Convolutions of the input, added up."""
    rng = np.random.default_rng(4)
    stored = {f"w{i}": rng.normal(size=(4, 3, 3, 3)) / 5 for i in range(convolutions)}
    if bias:
        stored |= {f"b{i}": rng.normal(size=4) for i in range(convolutions)}
    nodes = [
        helper.make_node(
            "Conv", ["tensor", f"w{i}", *([f"b{i}"] if bias else [])], [f"y{i}"], name=f"conv{i}",
            **attributes,
        )
        for i in range(convolutions)
    ]  # fmt: skip
    nodes.append(
        helper.make_node("Sum", [f"y{i}" for i in range(convolutions)], ["logits"], name="sum")
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("tensor", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [value("logits", TensorProto.FLOAT, ["N", 4, "h", "w"])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


PADDED: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def _with_1x1() -> onnx.ModelProto:
    """A padded convolution, and beside it a 1x1 that needs no padding."""
    model = _model(convolutions=2, **PADDED)
    del model.graph.node[1].attribute[:]
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    small = np.ascontiguousarray(numpy_helper.to_array(weight)[..., :1, :1])
    weight.CopyFrom(numpy_helper.from_array(small, "w1"))
    return model


MODELS = {
    "padded": (_model(**PADDED), True),
    "stride 2": (_model(pads=[0, 0, 1, 1], strides=[2, 2]), True),
    "same": (_model(auto_pad="SAME_UPPER"), True),
    "no bias": (_model(bias=False, **PADDED), True),
    "two readers": (_model(convolutions=2, **PADDED), True),
    "one of two is padded": (_with_1x1(), True),
    "unpadded": (_model(), False),
    "unpadded, no bias": (_model(bias=False), False),
    "padded by nothing": (_model(pads=[0, 0, 0, 0]), False),
    "valid, two readers": (_model(convolutions=2, auto_pad="VALID"), False),
}


def images(seed: int = 0) -> NDArray[np.uint8]:
    """Noise, and one image that is white: what a wrong border would show most on."""
    noise = np.random.default_rng(seed).integers(0, 256, (2, 17, 23, 3), dtype=np.uint8)
    noise[1] = 255
    return noise


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", SPECS)
def test_the_folded_graph_answers_as_the_reference_does(name: str, kind: str, run: Run) -> None:
    (model, is_padded), spec = MODELS[name], SPECS[kind]
    batch = np.stack([normalize_image(image, spec) for image in images()])
    wanted = run(model, batch)[0]
    folded, left = fold_normalization(model, spec)
    found = run(add_image_input(folded, left), images())[0]
    # Sums of 27 products of numbers up to 255 x |w| / std, each rounded to 2^-24 of its size.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-6 * float(np.abs(wanted).max()))
    assert (left.scale, left.std, left.channel_order) == (1.0, (1.0, 1.0, 1.0), "rgb")
    kinds = [n.op_type for n in add_image_input(folded, left).graph.node]
    has_mean = is_padded and any(spec.mean)
    assert kinds[: 2 + has_mean] == ["Cast", "Transpose", "Sub"][: 2 + has_mean]
    assert kinds[2 + has_mean] == "Conv"


def test_a_mean_in_the_bias_of_a_padded_convolution_would_be_wrong(run: Run) -> None:
    """The reason for the rule: at the border only, and by far more than rounding."""
    padded, _ = MODELS["padded"]
    bare, spec = fold_normalization(_model(), RGB)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(bare)
    wrong.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    batch = np.stack([normalize_image(image, RGB) for image in images()])
    difference = np.abs(run(add_image_input(wrong, spec), images())[0] - run(padded, batch)[0])
    assert difference[..., 1:-1, 1:-1].max() < 1e-4
    assert difference[..., 0, :].max() > 0.5


def test_a_whole_network_gives_the_same(small_model: onnx.ModelProto, run: Run) -> None:
    batch = np.stack([normalize_image(image, BGR) for image in images()])
    wanted = run(small_model, batch)[0]
    folded, left = fold_normalization(small_model, BGR)
    found = run(add_image_input(folded, left), images())[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
    kept = {t.name: t for t in small_model.graph.initializer if not t.name.startswith("stem.w")}
    assert all(initializers(folded.graph)[name] == tensor for name, tensor in kept.items())


def _reading_by(node: onnx.NodeProto, **stored: Any) -> onnx.ModelProto:
    """Return the padded model with another reader of its input, whose result nobody needs."""
    model = onnx.ModelProto()
    model.CopyFrom(MODELS["padded"][0])
    model.graph.node.append(node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in stored.items()
    )
    return model


def test_what_cannot_take_it_stays_as_it_is() -> None:
    grouped = _model(group=3, **PADDED)
    grouped.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((3, 1, 3, 3), np.float32), "w0")
    )
    grouped.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "b0"))
    grouped.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    other = _reading_by(helper.make_node("Mul", ["tensor", "two"], ["z"], name="z"), two=2.0)
    computed = _model(**PADDED)
    computed.graph.node.insert(0, helper.make_node("Neg", ["raw"], ["w0"], name="neg"))
    computed.graph.initializer[0].name = "raw"
    shifted = _model(**PADDED)  # Its bias is computed.
    shifted.graph.node.insert(0, helper.make_node("Neg", ["raw"], ["b0"], name="neg"))
    shifted.graph.initializer[1].name = "raw"
    beside = _model(**PADDED)
    beside.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    for model in (grouped, other, computed, shifted, beside):
        folded, left = fold_normalization(model, RGB)
        assert folded == model
        assert left == RGB


def test_reading_the_shape_of_the_input_is_no_hindrance() -> None:
    model = _reading_by(helper.make_node("Shape", ["tensor"], ["z"], name="z"))
    assert fold_normalization(model, RGB)[1] != RGB


def test_weights_that_others_share_are_not_changed_for_them(run: Run) -> None:
    value = helper.make_tensor_value_info
    weight = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["tensor", "w"], ["a"], name="a"),
            helper.make_node("Conv", ["a", "w"], ["logits"], name="b"),
        ],
        "g", [value("tensor", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [value("logits", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folded, left = fold_normalization(model, RGB)
    second = next(n for n in folded.graph.node if n.name == "b")
    np.testing.assert_array_equal(to_array(initializers(folded.graph)[second.input[1]]), weight)
    batch = np.stack([normalize_image(image, RGB) for image in images()])
    found = run(add_image_input(folded, left), images())[0]
    np.testing.assert_allclose(found, run(model, batch)[0], rtol=0, atol=1e-4)


def test_a_quantised_graph_is_refused_and_a_second_folding_does_nothing() -> None:
    model = MODELS["padded"][0]
    folded, left = fold_normalization(model, RGB)
    again, same = fold_normalization(folded, left)
    assert (again, same) == (folded, left)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    quantized.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s"], ["z"], name="dq"))
    with pytest.raises(BuildError, match="quantised already"):
        fold_normalization(quantized, RGB)


def test_the_ends_may_still_be_changed(run: Run) -> None:
    from segdeploy.core.task import Task

    folded, left = fold_normalization(MODELS["padded"][0], RGB)
    both = add_label_output(add_image_input(folded, left), Task.MULTICLASS, 4)
    assert run(both, images())[0].dtype == np.uint8
    assert producers(both.graph)["tensor"].op_type == "Sub"
