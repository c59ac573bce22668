"""Tables behind the TensorRT rules, measured with the parser (benchmarks/lint_agreement.py)."""

from __future__ import annotations

from onnx import TensorProto

# OnnxParser.supports_operator, less those whose importer ends in a plugin that is not there.
OPERATORS = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan",
        "Atanh", "Attention", "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast",
        "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div",
        "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten",
        "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
        "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
        "GridSample", "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid",
        "HardSwish", "Hardmax", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN",
        "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
        "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool",
        "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
        "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "RNN",
        "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence",
        "RotaryEmbedding", "Round", "STFT", "Scan", "Scatter", "ScatterElements",
        "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
        "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt",
        "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu",
        "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip
PLUGINS = frozenset(
    {"CausalConvWithState", "LinearAttention", "NonMaxSuppression", "NonZero", "RoiAlign"}
)

REFUSED_TYPES = frozenset(
    {
        TensorProto.UINT16, TensorProto.INT16, TensorProto.UINT32, TensorProto.UINT64,
        TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128,
        TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
        TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2,
    }
)  # fmt: skip
# Types that Q/DQ nodes may have, and Cast may not.
QUANTIZED_ONLY = frozenset({TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1})

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
# First input of a type that ONNX allows and TensorRT refuses.
NOT_FOR: dict[str, tuple[int, ...]] = {
    "DepthToSpace": (TensorProto.BOOL,),
    "Gemm": _INTEGERS,
    "GridSample": (*_INTEGERS, TensorProto.BOOL, TensorProto.INT8),
    "MatMul": _INTEGERS,
    "Mod": (TensorProto.INT8,),
    "ReduceL2": _INTEGERS,
    "ReduceLogSum": _INTEGERS,
    "ReduceMax": (TensorProto.BOOL,),
    "ReduceMin": (TensorProto.BOOL,),
    "Relu": (TensorProto.INT32,),
    "Resize": (*_INTEGERS, TensorProto.BOOL),
    "SpaceToDepth": (TensorProto.BOOL,),
}

# Operators whose broadcasting changed with opset 7; the parser knows the later form only.
BROADCASTING = frozenset(
    {
        "Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or",
        "PRelu", "Pow", "Sub", "Sum", "Xor",
    }
)  # fmt: skip

# Inputs that hold sizes or axes, by position.
FIXED_SLOTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
}
AXES = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze",
)  # fmt: skip
# Inputs that decide an output's shape: no tensor computed from the inputs' values may be there.
NUMBER_SLOTS: dict[str, tuple[int, ...]] = {
    **FIXED_SLOTS,
    "BlackmanWindow": (0,),
    "CumSum": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "OneHot": (1,),
    "Upsample": (1,),
    **dict.fromkeys(AXES, (1,)),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Split": (1,),
    "TopK": (1,),
}
