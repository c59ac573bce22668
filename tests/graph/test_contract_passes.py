"""The two ends of a contract against core's NumPy reference, on the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.special import expit, softmax

from segdeploy.core.errors import BuildError
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.task import Task, predict_labels
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.label_output import add_label_output

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]

SPECS = [
    PreprocessSpec(),
    PreprocessSpec(channel_order="bgr", scale=1.0, mean=(103.5, 116.3, 123.7), std=(57, 58, 59)),
]


def _identity(channels: int) -> onnx.ModelProto:
    """A graph whose logits are its input: the passes alone are seen."""
    value = helper.make_tensor_value_info
    sides: list[Any] = ["N", channels, "H", "W"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["tensor"], ["logits"], name="same")],
        "identity",
        [value("tensor", TensorProto.FLOAT, sides)],
        [value("logits", TensorProto.FLOAT, sides)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("spec", SPECS, ids=["rgb", "bgr"])
def test_image_input_normalises_like_the_reference_to_the_last_bit(
    spec: PreprocessSpec, run: Run
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 19, 33, 3), dtype=np.uint8)
    found = run(add_image_input(_identity(3), spec), images)[0]
    wanted = np.stack([normalize_image(image, spec) for image in images])
    np.testing.assert_array_equal(found, wanted)


def test_image_input_casts_before_it_transposes() -> None:
    graph = add_image_input(_identity(3), PreprocessSpec()).graph
    first = next(n for n in graph.node if "image" in n.input)
    assert first.op_type == "Cast"
    assert [v.name for v in graph.input] == ["image"]
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_image_input_feeds_the_model_what_the_tensor_contract_would(
    small_model: onnx.ModelProto, run: Run
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1, 41, 37, 3), dtype=np.uint8)
    tensor = np.stack([normalize_image(image, PreprocessSpec()) for image in images])
    found = run(add_image_input(small_model, PreprocessSpec()), images)[0]
    np.testing.assert_array_equal(found, run(small_model, tensor)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_image_input_refuses_a_model_of_other_channels(channels: int) -> None:
    with pytest.raises(BuildError, match="N x 3 x H x W"):
        add_image_input(_identity(channels), PreprocessSpec())


@pytest.mark.parametrize("num_classes", [2, 11, 255, 256])
def test_labels_and_confidence_equal_numpy_and_scipy(num_classes: int, run: Run) -> None:
    rng = np.random.default_rng(num_classes)
    logits = (rng.standard_normal((2, num_classes, 9, 13)) * 4).astype(np.float32)
    model = add_label_output(_identity(num_classes), Task.MULTICLASS, num_classes, confidence=True)
    labels, confidence = run(model, logits)
    assert labels.dtype == (np.uint16 if num_classes >= 256 else np.uint8)
    np.testing.assert_array_equal(labels, logits.argmax(1))
    np.testing.assert_allclose(confidence, softmax(logits, axis=1).max(1), rtol=1e-5)


def test_ties_go_to_the_lowest_class(run: Run) -> None:
    logits = np.zeros((1, 6, 8, 8), np.float32)
    logits[:, 2:] = 1
    labels = run(add_label_output(_identity(6), Task.MULTICLASS, 6), logits)[0]
    assert (labels == 2).all()


def test_binary_labels_are_the_sign_and_zero_is_background(run: Run) -> None:
    logits = np.asarray([-3, -1e-30, -0.0, 0.0, 1e-30, 2], np.float32).reshape(1, 1, 2, 3)
    model = add_label_output(_identity(1), Task.BINARY, 1, confidence=True)
    labels, confidence = run(model, logits)
    np.testing.assert_array_equal(labels, predict_labels(logits, Task.BINARY))
    np.testing.assert_array_equal(labels[0], [[0, 0, 0], [0, 1, 1]])
    np.testing.assert_allclose(confidence, expit(np.abs(logits[:, 0])), rtol=1e-6)


def test_label_output_is_refused_twice_and_for_multilabel() -> None:
    labelled = add_label_output(_identity(3), Task.MULTICLASS, 3)
    with pytest.raises(BuildError, match="float32 output"):
        add_label_output(labelled, Task.MULTICLASS, 3)
    with pytest.raises(BuildError, match="multilabel"):
        add_label_output(_identity(3), Task.MULTILABEL, 3)


def test_passes_do_not_change_the_model_they_get(small_model: onnx.ModelProto) -> None:
    before = small_model.SerializeToString(deterministic=True)
    add_label_output(add_image_input(small_model, PreprocessSpec()), Task.MULTICLASS, 5)
    assert small_model.SerializeToString(deterministic=True) == before
