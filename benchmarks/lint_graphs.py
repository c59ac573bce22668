"""Small ONNX graphs in pairs: one that a runtime may refuse for one reason, and its healthy twin.

`make_graphs` gives them by name; `lint_agreement.py` asks the lint and the real parsers about each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

F32 = np.float32
_IMAGE = (1, 3, 16, 16)
_ZERO, _SCALE = np.int8(0), F32(0.1)
_RNG = np.random.default_rng(0)
_KERNEL = _RNG.normal(size=(4, 3, 3, 3)).astype(F32)
_Values = Mapping[str, Any]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    stored: _Values | None = None,
    *,
    outputs: Sequence[tuple[str, int]] = (("y", TensorProto.FLOAT),),
    opset: int = 18,
) -> onnx.ModelProto:
    """Return a model; the shapes of its outputs are inferred where they can be."""
    body = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(n, kind, list(shape))
            for n, (kind, shape) in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (stored or {}).items()],
    )
    domains = sorted({node.domain for node in nodes if node.domain})
    model = helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", opset)]
        + [helper.make_opsetid(domain, 1) for domain in domains],
        ir_version=10,
    )
    found = onnx.shape_inference.infer_shapes(model).graph.output
    del body.output[:]
    del model.graph.output[:]
    model.graph.output.extend(found)
    return model


def single(
    operator: str,
    *names: str,
    stored: _Values | None = None,
    kind: int = TensorProto.FLOAT,
    shape: Sequence[int | str] = _IMAGE,
    gives: int | None = None,
    opset: int = 18,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one operator on `x`."""
    node = helper.make_node(operator, ["x", *names], ["y"], name=f"the_{operator}", **attributes)
    outputs = (("y", kind if gives is None else gives),)
    return graph([node], {"x": (kind, shape)}, stored, outputs=outputs, opset=opset)


def _resize(opset: int = 19, sizes: Sequence[int] | None = None, **how: Any) -> onnx.ModelProto:
    if sizes is not None:
        return single("Resize", "", "", "s", stored={"s": np.asarray(sizes)}, opset=opset, **how)
    stored = {"s": np.asarray([1, 1, 2, 2], F32), "roi": np.asarray([0, 0, 0, 0, 1, 1, 1, 1], F32)}
    return single("Resize", "roi", "s", stored=stored, opset=opset, **how)


def _pair(
    *,
    zero: np.generic = _ZERO,
    scale: np.generic = _SCALE,
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    return graph(
        nodes, {"x": (kind, _IMAGE)}, {"s": scale, "z": zero}, outputs=[("y", kind)], opset=opset
    )


def _quantized_convolution(
    *, weight_zero: int = 0, int32_bias: bool = False, axis: int = 0
) -> onnx.ModelProto:
    width = _KERNEL.shape[axis]
    stored: dict[str, NDArray[Any]] = {
        "features.0.weight": (_KERNEL * 40).clip(-127, 127).astype(np.int8),
        "ws": np.full(width, 0.01, F32),
        "wz": np.full(width, weight_zero, np.int8),
        "s": np.asarray(0.1, F32),
        "z": np.asarray(0, np.int8),
        "features.0.bias": np.arange(4, dtype=np.int32) if int32_bias else np.arange(4, dtype=F32),
    }
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        make("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
        make(
            "DequantizeLinear", ["features.0.weight", "ws", "wz"], ["w"], name="weight", axis=axis
        ),
    ]
    bias = "features.0.bias"
    if int32_bias:
        stored |= {"bs": np.full(4, 0.001, F32), "bz": np.zeros(4, np.int32)}
        nodes.append(make("DequantizeLinear", [bias, "bs", "bz"], ["b"], name="bias", axis=0))
        bias = "b"
    nodes.append(make("Conv", ["d", "w", bias], ["y"], name="conv"))
    return graph(nodes, {"x": (TensorProto.FLOAT, _IMAGE)}, stored)


def _image_input(*, is_cast_first: bool) -> onnx.ModelProto:
    to_float = {"to": TensorProto.FLOAT}
    order = {"perm": [0, 3, 1, 2]}
    steps: list[tuple[str, dict[str, Any]]] = [("Cast", to_float), ("Transpose", order)]
    names = ["x", "m", "y"]
    nodes = [
        helper.make_node(op, [names[i]], [names[i + 1]], name=op.lower(), **how)
        for i, (op, how) in enumerate(steps if is_cast_first else steps[::-1])
    ]
    return graph(nodes, {"x": (TensorProto.UINT8, (1, 16, 16, 3))})


def _labels(kind: int, *, is_cast_back: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0, name="argmax"),
        helper.make_node("Cast", ["i"], ["l"], to=kind, name="labels"),
    ]
    if is_cast_back:
        nodes.append(helper.make_node("Cast", ["l"], ["y"], to=TensorProto.FLOAT, name="back"))
        return graph(nodes, {"x": (TensorProto.FLOAT, _IMAGE)})
    return graph(nodes, {"x": (TensorProto.FLOAT, _IMAGE)}, outputs=[("l", kind)])


def _branches(inner: str) -> onnx.ModelProto:
    def branch(operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["x"], [f"{operator}_out"], name=f"in_{operator}")
        out = helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], operator, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch(inner), else_branch=branch("Neg"), name="choose"
    )
    return graph([node], {"x": (TensorProto.FLOAT, (4, 4)), "c": (TensorProto.BOOL, ())})


def _external() -> onnx.ModelProto:
    model = single("Conv", "w", stored={"w": _KERNEL})
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "not_there.bin", 0, _KERNEL.nbytes)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model


def _fed(operator: str, shape: Sequence[int], **attributes: Any) -> onnx.ModelProto:
    """Return a model where a second input decides sizes."""
    node = helper.make_node(operator, ["x", "n"], ["y"], name="fed", **attributes)
    return graph([node], {"x": (TensorProto.FLOAT, _IMAGE), "n": (TensorProto.INT64, shape)})


def _two_outputs(operator: str, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x"], ["y", "i"], name=f"the_{operator}", **attributes)
    return graph([node], {"x": (TensorProto.FLOAT, _IMAGE)})


def _batch_norm(**attributes: Any) -> onnx.ModelProto:
    ones = dict.fromkeys("abcd", np.ones(3, F32))
    outputs = ["y", "m", "v"] if attributes else ["y"]
    node = helper.make_node("BatchNormalization", ["x", *"abcd"], outputs, name="bn", **attributes)
    return graph([node], {"x": (TensorProto.FLOAT, _IMAGE)}, ones)


def _scatter(reduction: str) -> onnx.ModelProto:
    stored = {"i": np.asarray([[0], [1]]), "u": np.ones((2, 4), F32)}
    return single("ScatterND", "i", "u", stored=stored, shape=(4, 4), reduction=reduction)


def _shape_arithmetic() -> onnx.ModelProto:
    """The exporter's way to a dynamic size: Shape, Slice, Resize."""
    stored = {"two": np.asarray([2]), "four": np.asarray([4]), "head": np.asarray([1, 3])}
    make = helper.make_node
    nodes = [
        make("Shape", ["x"], ["shape"], name="shape"),
        make("Slice", ["shape", "two", "four"], ["hw"], name="slice"),
        make("Mul", ["hw", "two"], ["double"], name="mul"),
        make("Concat", ["head", "double"], ["sizes"], axis=0, name="concat"),
        make("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", name="resize"),
    ]
    return graph(nodes, {"x": (TensorProto.FLOAT, _IMAGE)}, stored)


def make_graphs() -> dict[str, onnx.ModelProto]:
    """Return the graphs by name."""
    half, double = TensorProto.FLOAT16, TensorProto.DOUBLE
    drop = {"r": np.asarray(0.5, F32), "t": np.asarray(True)}
    pads = {"p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1])}
    return {
        "resize half_pixel linear": _resize(mode="linear"),
        "resize align_corners cubic": _resize(
            mode="cubic", coordinate_transformation_mode="align_corners"
        ),
        "resize asymmetric nearest floor": _resize(
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        ),
        "resize tf_crop_and_resize": _resize(
            mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
        ),
        "resize half_pixel_symmetric": _resize(
            mode="linear", coordinate_transformation_mode="half_pixel_symmetric"
        ),
        "resize antialias": _resize(mode="linear", antialias=1),
        "resize to sizes": _resize(sizes=[1, 3, 20, 20], mode="linear"),
        "resize keep aspect": _resize(
            sizes=[20, 30], mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"
        ),
        "resize of int32": single(
            "Resize", "", "s", stored={"s": np.asarray([1, 1, 2, 2], F32)}, kind=TensorProto.INT32,
            mode="nearest",
        ),
        "resize by shape arithmetic": _shape_arithmetic(),
        "qdq symmetric int8": _pair(),
        "qdq zero point 3": _pair(zero=np.int8(3)),
        "qdq uint8 zero point 128": _pair(zero=np.uint8(128)),
        "qdq uint8 zero point 0": _pair(zero=np.uint8(0)),
        "qdq scale 0": _pair(scale=F32(0)),
        "qdq negative scale": _pair(scale=F32(-0.1)),
        "qdq int16": _pair(zero=np.int16(0), opset=21),
        "qdq fp16 scales, opset 19": _pair(scale=np.float16(0.1), kind=half, opset=19),
        "qdq convolution": _quantized_convolution(),
        "qdq convolution, weights along inputs": _quantized_convolution(axis=1),
        "qdq convolution, weight zero point": _quantized_convolution(weight_zero=5),
        "qdq convolution, int32 bias": _quantized_convolution(int32_bias=True),
        "dynamic quantisation": _dynamic(),
        "uint8 image, cast first": _image_input(is_cast_first=True),
        "uint8 image, transpose first": _image_input(is_cast_first=False),
        "uint8 labels": _labels(TensorProto.UINT8),
        "uint16 labels": _labels(TensorProto.UINT16),
        "int32 labels": _labels(TensorProto.INT32),
        "uint8 inside": _labels(TensorProto.UINT8, is_cast_back=True),
        "int32 inside": _labels(TensorProto.INT32, is_cast_back=True),
        "float16": single("Sigmoid", kind=half),
        "float64": single("Exp", kind=double),
        "int32 relu": single("Relu", kind=TensorProto.INT32),
        "int64 add": single("Add", "x", kind=TensorProto.INT64),
        "int32 matmul": single("MatMul", "x", kind=TensorProto.INT32),
        "text input": single("Identity", kind=TensorProto.STRING),
        "uint32 input": single("Cast", kind=TensorProto.UINT32, gives=1, to=TensorProto.FLOAT),
        "convolution": single("Conv", "w", stored={"w": _KERNEL}),
        "convolution, 4 dimensions": single(
            "Conv", "w", stored={"w": np.ones((4, 3, 2, 2, 2, 2), F32)}, shape=(1, 3, 4, 4, 4, 4)
        ),
        "convolution, NaN weights": single("Conv", "w", stored={"w": _KERNEL * np.nan}),
        "convolution, float16 weights": single(
            "Conv", "w", stored={"w": _KERNEL.astype(np.float16)}
        ),
        "convolution, data file missing": _external(),
        "transposed convolution": single(
            "ConvTranspose", "w", stored={"w": _KERNEL.transpose(1, 0, 2, 3).copy()},
            strides=[2, 2], output_padding=[1, 1],
        ),
        "max pooling": single("MaxPool", kernel_shape=[3, 3], ceil_mode=1),
        "max pooling, dilated": single("MaxPool", kernel_shape=[3, 3], dilations=[2, 2]),
        "max pooling with indices": _two_outputs("MaxPool", kernel_shape=[2, 2]),
        "average pooling, dilated": single(
            "AveragePool", kernel_shape=[3, 3], dilations=[2, 2], opset=19
        ),
        "batch norm": _batch_norm(),
        "batch norm, training": _batch_norm(training_mode=1),
        "dropout": single("Dropout"),
        "dropout, training": single("Dropout", "r", "t", stored=drop),
        "pad reflect": single("Pad", "p", stored=pads, mode="reflect", opset=19),
        "pad wrap": single("Pad", "p", stored=pads, mode="wrap", opset=19),
        "pad by an input": _fed("Pad", [8]),
        "top 2": _top(2),
        "top 4000": _top(4000),
        "reshape": single("Reshape", "n", stored={"n": np.asarray([3, -1])}),
        "reshape by an input": _fed("Reshape", [2]),
        "reshape to 9 dimensions": single(
            "Reshape", "n", stored={"n": np.asarray([1, 1, 1, 1, 1, 3, 16, 4, 4])}
        ),
        "scatter": _scatter("none"),
        "scatter, adding": _scatter("add"),
        "grid sample": single(
            "GridSample", "g", stored={"g": np.zeros((1, 8, 8, 2), F32)}, opset=20
        ),
        "non-zero": single("NonZero", gives=TensorProto.INT64),
        "determinant": single("Det", shape=(4, 4)),
        "operator of another domain": single("MyOp", domain="my.domain"),
        "operator that ONNX has not": single("Foo"),
        "operator of ONNX Runtime": single("QuickGelu", domain="com.microsoft"),
        "hard swish": single("HardSwish"),
        "if": _branches("Relu"),
        "if with an unknown operator": _branches("Det"),
        "dynamic size": single("Relu", shape=("N", 3, "H", "W")),
        "mixed types": single("Add", "c", stored={"c": np.float16(1)}),
        "opset 9": single("Relu", opset=9),
    }  # fmt: skip


def _dynamic() -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="measure"),
        make("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    return graph(nodes, {"x": (TensorProto.FLOAT, _IMAGE)})


def _top(k: int) -> onnx.ModelProto:
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1, name="top")
    return graph([node], {"x": (TensorProto.FLOAT, (1, 5000))}, {"k": np.asarray([k])})
