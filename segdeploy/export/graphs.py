"""The graph of one target, made from the plain fp32 graph by passes, for every runtime alike.

Order: precision first, contract last, so that normalisation and decision are float32 whatever the
precision of the model between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import BuildError, UnsupportedTargetError
from segdeploy.core.files import digest_of
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.target import ClipMethod, Precision
from segdeploy.export.calibration import CalibrationSet, Progress
from segdeploy.graph.answer_clip import narrow_by_answer, stem_maps
from segdeploy.graph.bias_correction import correct_bias
from segdeploy.graph.calibrate import Batches, count_values
from segdeploy.graph.clipping import TensorRange, choose_clip
from segdeploy.graph.equalization import equalize
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.label_output import add_label_output
from segdeploy.graph.low_logits import cut_low_logits
from segdeploy.graph.overflow import Peaks, describe_cast, find_islands, observe_peaks
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.policy import DEFAULT, Policy, shipped_policy
from segdeploy.graph.proto import graph_bytes
from segdeploy.graph.qdq import insert_qdq

Ranges = Mapping[str, TensorRange]
NUM_ASKED = 8
"""Images that decide where a stem's map is clipped."""


def convert_precision(
    plain: onnx.ModelProto,
    precision: Precision,
    find_ranges: Callable[[], Ranges],
    rest: Precision = Precision.FP32,
    find_peaks: Callable[[onnx.ModelProto], Peaks | None] = lambda _: None,
    policy: Policy | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda quantized: quantized,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the plain fp32 graph in another precision, and what its manifest tells of it.

    Args:
        plain: The parent.
        precision: What it shall become.
        find_ranges: Asked for int8.
        rest: What int8 leaves unquantised: fp32, or fp16 (scales and all, opset 19).
        find_peaks: Asked where something is cast to fp16; None is that no images were given.
        policy: Which nodes int8 quantises; default: the default policy.
        finish: What is done to the graph with Q/DQ, in float32 (`finish_int8`).

    Raises:
        UnsupportedTargetError: If int8 would quantise nothing.
    """
    if precision is Precision.FP16:
        return _cast(plain, find_peaks(plain))
    if precision is not Precision.INT8:
        return plain, {}
    policy = policy or shipped_policy(DEFAULT)
    placement = place_qdq(plain, policy)
    if not placement.weights and not placement.activations:
        raise UnsupportedTargetError(
            f"int8 was asked for, and the policy '{policy.name}' leaves every node of this graph "
            "in float.",
            hint="Give another --int8-policy (e.g. all), or export the fp16 or fp32 target.",
        )
    said = {"int8": {**policy.identity, **placement.to_dict()}}
    if rest is Precision.FP16:
        quantized = finish(insert_qdq(plain, placement, find_ranges(), np.float16))
        cast, said_of_cast = _cast(quantized, find_peaks(plain))
        return cast, {**said, **said_of_cast}
    return finish(insert_qdq(plain, placement, find_ranges())), said


def _cast(model: onnx.ModelProto, peaks: Peaks | None) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the graph in float16 but for its islands; without images only weights make one."""
    islands = find_islands(model, peaks)
    said = {} if peaks is None and not islands else {"fp16": describe_cast(model, islands)}
    return cast_to_fp16(model, islands), said


def prepare_int8(
    plain: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
) -> onnx.ModelProto:
    """Return the plain graph as int8 is made from it; it computes the same bits."""
    if not calibration.options.equalize:
        return plain
    return equalize(plain, calibration_batches(calibration, preprocess, progress, "equalise"))


def find_ranges(
    plain: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
    policy: Policy | None = None,
) -> Ranges:
    """Return the ranges of all tensors that the int8 placement quantises; see `choose_ranges`."""
    tensors = place_qdq(plain, policy).observed
    known = _known_ranges(plain, calibration, preprocess)
    missing = [name for name in tensors if name not in known]
    if missing:
        known |= choose_ranges(plain, missing, calibration, preprocess, progress)
    return {name: known[name] for name in tensors}


def choose_ranges(
    plain: onnx.ModelProto,
    tensors: Sequence[str],
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
    what: str = "calibrate",
) -> dict[str, TensorRange]:
    """Return the ranges of these tensors of the plain graph.

    A range depends on the images and on its tensor's values; with `mse` that of a stem's map also
    on what the float network answers (`answer_clip`). No range depends on the policy, or on which
    other tensors are asked for.
    """
    batches = calibration_batches(calibration, preprocess, progress, what)
    chosen = calibration.options
    counted = count_values(plain, tensors, batches)
    found = {n: choose_clip(counted[n], chosen.method, chosen.percentile) for n in tensors}
    uneven = {name: found[name] for name in stem_maps(plain) if name in found}
    if uneven and chosen.method is ClipMethod.MSE:
        few = calibration_batches(
            calibration.few(NUM_ASKED), preprocess, progress, f"{what}, clip the stem"
        )
        found |= narrow_by_answer(plain, uneven, counted, few)
    return found


_known: dict[str, dict[str, TensorRange]] = {}


def _known_ranges(
    plain: onnx.ModelProto, calibration: CalibrationSet, preprocess: PreprocessSpec
) -> dict[str, TensorRange]:
    """Return what this process found for this graph and these images, to be added to.

    Targets of one export and variants of `tune` share it. Only the latest graph's is kept.
    """
    graph = hashlib.sha256(graph_bytes(plain)).hexdigest()
    setting = [msgspec.to_builtins(each) for each in (calibration.options, preprocess)]
    key = digest_of({"graph": graph, "images": calibration.digest, "setting": setting})
    if key not in _known:
        _known.clear()
    return _known.setdefault(key, {})


def finish_int8(
    plain: onnx.ModelProto,
    quantized: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
) -> onnx.ModelProto:
    """Return the graph with Q/DQ with its biases corrected, where that is asked for."""
    if not calibration.options.correct_bias:
        return quantized
    return correct_bias(
        plain, quantized, calibration_batches(calibration, preprocess, progress, "biases")
    )


def quantize(
    plain: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    *,
    rest: Precision = Precision.FP32,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> tuple[onnx.ModelProto, Ranges]:
    """Return the int8 graph of a plain one and the ranges in it: all that `export` does, no files.

    `open_calibration(data, num_images, Int8Options(...))` gives the images and the options.
    """
    prepared = prepare_int8(plain, calibration, preprocess, progress)
    ranges = find_ranges(prepared, calibration, preprocess, progress, policy)
    graph, _ = convert_precision(
        prepared,
        Precision.INT8,
        lambda: ranges,
        rest,
        lambda model: find_peaks(model, calibration, preprocess, progress),
        policy,
        lambda model: finish_int8(prepared, model, calibration, preprocess, progress),
    )
    return graph, ranges


def calibration_batches(
    calibration: CalibrationSet, preprocess: PreprocessSpec, progress: Progress | None, what: str
) -> Batches:
    """Return what reads the images anew each time it is called."""
    num_passes = 0

    def batches() -> Iterator[NDArray[np.float32]]:
        nonlocal num_passes
        num_passes += 1
        return calibration.batches(preprocess, progress, f"{what}, pass {num_passes}")

    return batches


def find_peaks(
    model: onnx.ModelProto,
    calibration: CalibrationSet,
    preprocess: PreprocessSpec,
    progress: Progress | None,
) -> Peaks:
    """Return how large the activations of a float32 graph become on the calibration images."""
    return observe_peaks(model, lambda: calibration.batches(preprocess, progress, "fp16 range"))


def apply_contract(graph: onnx.ModelProto, io: IoContract, manifest: Manifest) -> onnx.ModelProto:
    """Return the graph with the two ends of a contract."""
    if io.input is InputKind.IMAGE:
        graph = add_image_input(graph, manifest.preprocess)
    if io.output is OutputKind.LOW_LOGITS:
        if manifest.upsampling is None:
            raise BuildError("Nothing says how these low-resolution logits are upsampled.")
        low_height, low_width = manifest.outputs[0].shape[2:]
        low_size = (low_height, low_width) if low_height and low_width else None
        graph = cut_low_logits(graph, manifest.upsampling.align_corners, low_size)
    elif io.output is not OutputKind.LOGITS:
        graph = add_label_output(
            graph,
            manifest.task,
            len(manifest.classes),
            confidence=io.output is OutputKind.LABELS_CONFIDENCE,
        )
    return graph
