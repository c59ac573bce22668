"""Operators of the domain com.microsoft: ONNX Runtime's list, and what OpenVINO's reader has of it.

The list is what ONNX Runtime 1.31 gives of itself (get_all_operator_schema); OpenVINO 2026.4 was
asked about each of them.
"""

from __future__ import annotations

DOMAIN = "com.microsoft"
ONNXRUNTIME = frozenset(
    {
        "Attention", "AttnLSTM", "BeamSearch", "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax",
        "BiasSplitGelu", "BifurcationDetector", "BitmaskBiasDropout", "BitmaskDropout",
        "BranchwiseRMSNorm", "CDist", "CausalConvWithState", "ComplexMul", "ComplexMulConj",
        "ConvTransposeWithDynamicPads", "CropAndResize", "DecoderAttention",
        "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DequantizeBFP",
        "DequantizeLinear", "DequantizeWithOrder", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
        "DynamicSparseAttention", "DynamicTimeWarping", "EPContext", "EmbedLayerNormalization",
        "EngramGate", "ExpandDims", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul",
        "FusedMatMulActivation", "GatedAdd", "GatedDeltaNet", "GatedRMSNorm",
        "GatedRelativePositionBias", "GatherBlockQuantized", "GatherND", "Gelu", "GemmFastGelu",
        "GemmFloat8", "GemmaRotaryEmbedding", "GreedySearch", "GridSample", "GroupNorm",
        "GroupQueryAttention", "HyperConnectionPostMix", "HyperConnectionPreMix", "Inverse",
        "Irfft", "IsAllFinite", "LinearAttention", "LinearAttentionGate", "LongformerAttention",
        "MRotaryEmbedding", "MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight",
        "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits",
        "MatMulNBitsMlp", "MatMulNBitsQkv", "MaxpoolWithMask", "MoE", "MulInteger",
        "MultiHeadAttention", "MurmurHash3", "NGramHashMapping", "NGramRepeatBlock", "NhwcConv",
        "NhwcFusedConv", "NhwcMaxPool", "PackedAttention", "PackedMultiHeadAttention",
        "PackedSparseAttentionIndexer", "Pad", "PagedAttention", "QAttention",
        "QEmbedLayerNormalization", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
        "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
        "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QMoE",
        "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization",
        "QOrderedLongformerAttention", "QOrderedMatMul", "QuantizeBFP", "QuantizeLinear",
        "QuantizeWithOrder", "QuickGelu", "Range", "ReduceSumInteger", "RelativePositionBias",
        "RemovePadding", "RestorePadding", "Rfft", "RotaryEmbedding", "SampleOp", "Sampling",
        "ScaledSiLU", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        "Snpe", "SparseAttention", "SparseAttentionIndexer", "SparsePagedAttention",
        "SparseToDenseMatMul", "Tokenizer", "TorchEmbedding", "TransposeMatMul", "Trilu",
        "UnfoldTensor", "Unique", "VarlenCausalConvWithState", "VarlenNGramHashMapping",
        "WhisperBeamSearch", "WordConvEmbedding",
    }
)  # fmt: skip
OPENVINO = frozenset(
    {
        "Attention", "BiasAdd", "BiasGelu", "BifurcationDetector", "DequantizeLinear",
        "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu",
        "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "GatherND", "Gelu",
        "GroupNorm", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits",
        "MultiHeadAttention", "Pad", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
        "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax",
        "QLinearWhere", "QuantizeLinear", "QuickGelu", "Range", "RotaryEmbedding",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Trilu",
    }
)  # fmt: skip
