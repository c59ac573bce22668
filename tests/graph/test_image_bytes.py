"""The first convolution over bytes: the numbers of the graph before, by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.graph.image_bytes import read_image_bytes
from segdeploy.graph.image_input import add_image_input

MEAN = (123.675, 116.28, 103.53)
SIZE = (14, 18)


def graph(
    *,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = (1, 1, 1),
    order: str = "rgb",
    size: tuple[int | str, int | str] = SIZE,
    bias: bool = True,
    is_float: bool = False,
    twice: bool = False,
    kernel: int = 3,
    **attributes: Any,
) -> onnx.ModelProto:
    """An image, normalised, and a convolution with int8 weights."""
    rng = np.random.default_rng(3)
    constants: dict[str, NDArray[Any]] = {
        "w": rng.integers(-127, 128, (4, 3, kernel, kernel)).astype(np.int8),
        "s": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "z": np.zeros(4, np.int8),
        "b": rng.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="wd", axis=0),
        helper.make_node("Conv", ["x", "wd", "b"][: 2 + bias], ["y"], name="conv", **attributes),
    ]
    if is_float:
        constants["wd"] = constants["w"] * constants["s"][:, None, None, None]
        del nodes[0]
    if twice:
        nodes.append(helper.make_node("Relu", ["x"], ["y_2"], name="other"))
    outputs = [node.output[0] for node in nodes[-1 - twice :]]
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *size])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if n in used],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    spec = PreprocessSpec(channel_order=order, scale=1.0, mean=mean, std=std)
    return add_image_input(model, spec)


def run(model: onnx.ModelProto, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {"image": image})[0]
    return found


def make_images(num: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num, *SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"pads": [0, 1, 2, 3]},
        {"pads": [3, 3, 3, 3], "strides": [2, 2], "kernel": 7},
        {"pads": [2, 0, 0, 2], "dilations": [2, 2], "bias": False},
        {"pads": [0, 0, 0, 0], "mean": (0.0, 0.0, 0.0)},
        {"auto_pad": "VALID"},
        {"mean": (-300.0, 116.28, 400.0)},
        {"mean": (-0.4, 0.0, 255.4), "pads": [1, 1, 1, 1]},
        {},
    ],
)
@pytest.mark.parametrize("num", [1, 3])
def test_the_numbers_are_the_same_but_for_the_colour_of_the_border(
    settings: dict[str, Any], num: int
) -> None:
    model = graph(**settings)
    changed = read_image_bytes(model)
    onnx.checker.check_model(changed, full_check=True)
    kinds = [node.op_type for node in changed.graph.node]
    assert not {"Cast", "Sub", "Mul", "Div"} & set(kinds)
    images = make_images(num)
    before, after = run(model, images), run(changed, images)
    assert after.shape == before.shape
    far = max([0, *settings.get("pads", [])])
    if far:
        inside = (..., slice(far, -far), slice(far, -far))
        np.testing.assert_allclose(after[inside], before[inside], rtol=1e-4, atol=1e-3)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    most = np.abs(stored["w"] * stored["s"][:, None, None, None]).sum(axis=(1, 2, 3)).max() / 2
    assert np.abs(after - before).max() <= (most if far else 1e-3)


def test_a_mean_of_whole_numbers_has_an_exact_border() -> None:
    model = graph(mean=(124.0, 7.0, 255.0), pads=[1, 2, 3, 4])
    images = make_images(2)
    before, after = run(model, images), run(read_image_bytes(model), images)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"is_float": True},
        {"std": (2.0, 3.0, 4.0)},
        {"order": "bgr"},
        {"size": ("H", "W")},
        {"twice": True},
        {"auto_pad": "SAME_UPPER"},
        {"mean": (-1.0, 116.28, 103.53), "pads": [1, 1, 1, 1]},
        {"mean": (123.675, 116.28, 256.0), "pads": [0, 0, 0, 1]},
    ],
    ids=str,
)
def test_others_stay_as_they_are(settings: dict[str, Any]) -> None:
    model = graph(**settings)
    assert read_image_bytes(model) == model
