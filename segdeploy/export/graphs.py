"""The graph of one target, made from the plain fp32 graph by passes, for every runtime alike.

Order: precision first, contract last, so that normalisation and decision are float32 whatever the
precision of the model between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.target import Precision
from segdeploy.export.calibration import CalibrationSet, Progress
from segdeploy.graph.calibrate import TensorRange, calibrate
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.label_output import add_label_output
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.qdq import insert_qdq

Ranges = Mapping[str, TensorRange]


def convert_precision(
    plain: onnx.ModelProto,
    precision: Precision,
    find_ranges: Callable[[], Ranges],
    rest: Precision = Precision.FP32,
) -> onnx.ModelProto:
    """Return the plain fp32 graph in another precision; `find_ranges` is asked for int8 only.

    `rest` is what int8 leaves unquantised: fp32, or fp16 (scales and all, opset 19).
    """
    if precision is Precision.FP16:
        return cast_to_fp16(plain)
    if precision is not Precision.INT8:
        return plain
    if rest is Precision.FP16:
        return cast_to_fp16(insert_qdq(plain, place_qdq(plain), find_ranges(), np.float16))
    return insert_qdq(plain, place_qdq(plain), find_ranges())


def find_ranges(
    plain: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
) -> Ranges:
    """Return the ranges of all tensors that the int8 placement quantises."""
    num_passes = 0

    def batches() -> Iterator[NDArray[np.float32]]:
        nonlocal num_passes
        num_passes += 1
        return calibration.batches(preprocess, progress, f"calibrate, pass {num_passes}")

    return calibrate(plain, place_qdq(plain).observed, batches)


def apply_contract(graph: onnx.ModelProto, io: IoContract, manifest: Manifest) -> onnx.ModelProto:
    """Return the graph with the two ends of a contract."""
    if io.input is InputKind.IMAGE:
        graph = add_image_input(graph, manifest.preprocess)
    if io.output is not OutputKind.LOGITS:
        graph = add_label_output(
            graph,
            manifest.task,
            len(manifest.classes),
            confidence=io.output is OutputKind.LABELS_CONFIDENCE,
        )
    return graph
