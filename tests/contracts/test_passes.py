"""Every graph pass on graphs of real models: it keeps its contract, its input, and the result.

The reference is the graph before the pass, run by ONNX Runtime without optimisation; for the passes
that change an end, what NumPy makes of that graph's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from segdeploy.backends.onnx_export import export_checkpoint
from segdeploy.core.errors import BuildError, UnsupportedTargetError
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.task import Task
from segdeploy.graph.bias_correction import correct_bias
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.constant_folding import fold_constants
from segdeploy.graph.equalization import equalize
from segdeploy.graph.fold_batch_norm import fold_batch_norm
from segdeploy.graph.fold_normalization import fold_normalization
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.graph.global_pool import use_global_pool
from segdeploy.graph.image_bytes import read_image_bytes
from segdeploy.graph.image_input import add_image_input
from segdeploy.graph.image_rows import normalize_in_rows
from segdeploy.graph.label_output import add_label_output
from segdeploy.graph.low_logits import cut_low_logits, find_last_resize, low_size
from segdeploy.graph.metadata import set_metadata
from segdeploy.graph.narrow_resize import narrow_before_resize
from segdeploy.graph.opset import convert_opset
from segdeploy.graph.pass_contract import PASSES, Need, PassContract
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.policy import CHOICES, shipped_policy
from segdeploy.graph.pool_in_steps import pool_in_steps
from segdeploy.graph.proto import attribute
from segdeploy.graph.qdq import insert_qdq
from segdeploy.graph.u8_activations import use_u8_activations
from segdeploy.graph.zero_points import fold_zero_points
from segdeploy.zoo import create_model, save_checkpoint
from tests.contracts.unpassed import (
    NUM_CLASSES,
    SIZE,
    older,
    with_batch_norms,
    with_identities,
    with_late_classifier,
    with_means,
)

QUICK = ("lraspp_mobilenet_v3_large",)
SLOW = ("unet", "deeplabv3_resnet50", "pspnet_resnet18", "u2net_lite", "fpn_resnet18")
SPEC = PreprocessSpec()
Arrays = list[NDArray[Any]]


def _graph(name: str, folder: Any, size: tuple[int, int] | None = SIZE) -> onnx.ModelProto:
    """Return the plain fp32 graph of a model with sane statistics, of one size or any."""
    torch.manual_seed(0)
    module = create_model(name, NUM_CLASSES)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        module.train()(torch.rand(4, 3, 96, 96) * 4 - 2)
    saved = save_checkpoint(
        folder / "checkpoint", module, model=name, task=Task.MULTICLASS,
        classes=tuple("abcde"), preprocess=SPEC, trained=False,
    )  # fmt: skip
    return export_checkpoint(saved, size)


@pytest.fixture(
    scope="module",
    params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _graph(request.param, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    rows, columns = np.indices(SIZE)
    waves = [127 + 120 * np.sin(rows / 7 + k) * np.cos(columns / (5 + k)) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def batch(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return normalize_image(image, SPEC)[None]


def run(model: onnx.ModelProto, values: NDArray[Any]) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    found: Arrays = session.run(None, {session.get_inputs()[0].name: values})
    return found


@dataclass(frozen=True)
class Example:
    """How a pass is called on a plain graph, and how its result is held against the reference.

    `prepare` makes the graph that it is for; `feed` gives what the changed graph takes, from the
    uint8 image and its normalised batch. `compare` gets the results before and after.
    """

    apply: Callable[[onnx.ModelProto], onnx.ModelProto]
    compare: Callable[[Arrays, Arrays], None]
    prepare: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model
    feed: Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[Any]] = lambda _, batch: batch
    feed_before: Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[Any]] = (
        lambda _, batch: batch
    )


def _equal(before: Arrays, after: Arrays) -> None:
    np.testing.assert_array_equal(after[0], before[0])


def _close(noise: float) -> Callable[[Arrays, Arrays], None]:
    """Root mean square of the difference, as a share of the logits' spread."""

    def compare(before: Arrays, after: Arrays) -> None:
        assert after[0].dtype == np.float32
        error = float(np.sqrt(np.mean((after[0] - before[0]) ** 2)))
        assert error <= noise * float(before[0].std())

    return compare


def _argmax(before: Arrays, after: Arrays) -> None:
    np.testing.assert_array_equal(after[0], before[0].argmax(1))


def _without_batch_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    folded = fold_batch_norm(model)
    assert not [n for n in folded.graph.node if n.op_type == "BatchNormalization"]
    return folded


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    folded = fold_constants(model)
    assert not [n for n in folded.graph.node if n.op_type == "Identity"]
    return folded


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    placement = place_qdq(model)
    return insert_qdq(model, placement, calibrate(model, placement.observed, _batches))


def _asymmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    placement = place_qdq(model, shipped_policy("openvino"))
    return insert_qdq(model, placement, calibrate(model, placement.observed, _batches))


def _without_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold, and look: what unpadded convolutions read has none left."""
    changed = fold_zero_points(model)
    stored = {t.name: numpy_helper.to_array(t) for t in changed.graph.initializer}
    made = {name: node for node in changed.graph.node for name in node.output}
    read = [
        stored[made[node.input[0]].input[2]]
        for node in changed.graph.node
        if node.op_type == "Conv" and not any(attribute(node, "pads", [0]))
        if made.get(node.input[0], node).op_type == "DequantizeLinear"
    ]
    assert read
    assert not np.any(read)
    return changed


def _in_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = normalize_in_rows(model)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds[: kinds.index("Transpose")] == ["Cast", "Reshape", "Mul", "Sub", "Div", "Reshape"]
    return changed


def _pooled(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = use_global_pool(model)
    kinds = [node.op_type for node in changed.graph.node]
    assert "ReduceMean" not in kinds
    assert "GlobalAveragePool" in kinds
    return changed


def _pooled_in_steps(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = pool_in_steps(model)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("AveragePool") >= 2  # That of the logits; maps of 3x4 are small enough.
    return changed


def _with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let an image be its input, and the weights of its first convolution be bytes."""
    folded, spec = fold_normalization(model, SPEC)
    groups = dict.fromkeys(CHOICES, "float") | {"first_convolution": "weights"}
    weights = replace(shipped_policy("openvino"), groups=groups)
    return add_image_input(insert_qdq(folded, place_qdq(folded, weights), {}), spec)


def _over_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = read_image_bytes(model)
    assert not {"Cast", "Sub"} & {node.op_type for node in changed.graph.node[:8]}
    return changed


def _narrowed(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = narrow_before_resize(model)
    assert changed.graph.node[-1].op_type == "Resize"
    return changed


_SEEN: Arrays = []  # The batch that results are compared on: calibration must have seen its like.
_PLAIN: list[onnx.ModelProto] = []  # The graph that a quantised one was made of.


def _batches() -> Arrays:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, 3, *SIZE)).astype(np.float32), _SEEN[0]]


def _equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    return equalize(model, _batches)


def _corrected(quantized: onnx.ModelProto) -> onnx.ModelProto:
    return correct_bias(_PLAIN[0], quantized, _batches)


def _cut(model: onnx.ModelProto) -> onnx.ModelProto:
    found = find_last_resize(model)
    return cut_low_logits(model, found.align_corners, low_size(model, found))


def _upsampled(before: Arrays, after: Arrays) -> None:
    rule = find_last_resize(_PLAIN[0]).align_corners
    logits = torch.nn.functional.interpolate(
        torch.from_numpy(after[0]), size=SIZE, mode="bilinear", align_corners=rule
    )
    spread = float(before[0].std())
    np.testing.assert_allclose(logits.numpy(), before[0], rtol=0, atol=1e-4 * spread)


def _centred(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean = np.asarray(SPEC.mean, np.float32) * np.float32(255)
    return (image.astype(np.float32) - mean).transpose(2, 0, 1)[None]


EXAMPLES = {
    "constant_folding": Example(_folded, _equal, with_identities),
    "batch_norm_folding": Example(_without_batch_norms, _close(1e-5), with_batch_norms),
    "fp16_cast": Example(cast_to_fp16, _close(0.02)),
    "qdq_insertion": Example(
        _quantized, _close(0.7)
    ),  # Untrained: only that nothing is upside down.
    "equalization": Example(_equalized, _close(1e-6)),
    "bias_correction": Example(_corrected, _close(0.4), _quantized),
    "low_logits": Example(_cut, _upsampled),
    "image_input": Example(
        lambda m: add_image_input(m, SPEC), _equal, feed=lambda image, _: image[None]
    ),
    "normalization_folding": Example(
        lambda m: fold_normalization(m, SPEC)[0],
        _close(1e-5),
        feed=lambda image, _: _centred(image),
    ),
    "label_output": Example(lambda m: add_label_output(m, Task.MULTICLASS, NUM_CLASSES), _argmax),
    "metadata": Example(lambda m: set_metadata(m, {"model": "x", "classes": ["a"]}), _equal),
    "u8_activations": Example(use_u8_activations, _equal, _quantized),
    "zero_points": Example(_without_zero_points, _close(0.3), _asymmetric),
    "image_rows": Example(
        _in_rows,
        _equal,
        lambda m: add_image_input(m, SPEC),
        feed=lambda image, _: image[None],
        feed_before=lambda image, _: image[None],
    ),
    "image_bytes": Example(
        _over_bytes,
        _close(5e-3),  # Of the border, where the mean colour is rounded to bytes.
        _with_int8_weights,
        feed=lambda image, _: image[None],
        feed_before=lambda image, _: image[None],
    ),
    "pooling_in_steps": Example(
        _pooled_in_steps, _close(1e-5), lambda m: use_global_pool(with_means(m))
    ),
    "global_pooling": Example(_pooled, _close(1e-5), with_means),
    "narrowing_before_resize": Example(_narrowed, _close(1e-5), with_late_classifier),
    "opset_conversion": Example(convert_opset, _equal, older),
}


_MAY_BE_IDLE = {"equalization"}  # A network of HardSwish has nothing that it may scale.


def _has_low_logits(plain: onnx.ModelProto) -> bool:
    try:
        find_last_resize(plain)
    except UnsupportedTargetError:
        return False
    return True


def _is_new(plain: onnx.ModelProto) -> bool:
    return not all(onnx.defs.has(node.op_type, 17, "") for node in plain.graph.node)


def test_every_pass_has_an_example() -> None:
    assert sorted(EXAMPLES) == PASSES.names()


@pytest.mark.parametrize("name", PASSES.names())
def test_a_pass_keeps_its_contract_its_input_and_the_result(
    name: str, plain: onnx.ModelProto, image: NDArray[np.uint8], batch: NDArray[np.float32]
) -> None:
    contract, example = PASSES.get(name), EXAMPLES[name]
    _SEEN[:], _PLAIN[:] = [batch], [plain]
    if name == "low_logits" and not _has_low_logits(plain):
        pytest.skip("its head works at full resolution")
    if name == "opset_conversion" and _is_new(plain):
        pytest.skip("it has an operator that opset 17 did not have")
    before = example.prepare(plain)
    kept = before.SerializeToString(deterministic=True)
    contract.check_before(before)
    after = example.apply(before)
    contract.check_after(before, after)
    assert before.SerializeToString(deterministic=True) == kept
    assert after.SerializeToString(deterministic=True) != kept or name in _MAY_BE_IDLE
    assert example.apply(before) == after  # The same every time.
    reference = run(before, example.feed_before(image, batch))
    example.compare(reference, run(after, example.feed(image, batch)))


@pytest.mark.parametrize("size", [SIZE, None], ids=["fixed", "open"])
def test_the_head_of_lraspp_enlarges_classes_not_channels(size: Any, tmp_path: Any) -> None:
    model = _graph("lraspp_mobilenet_v3_large", tmp_path, size)
    shapes = {t.name: t.dims for t in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    first, last = (n for n in model.graph.node if n.op_type == "Resize")
    assert made[first.input[0]].op_type == "Conv"
    assert shapes[made[first.input[0]].input[1]][0] == NUM_CLASSES
    assert made[last.input[0]].op_type == "Add"
    assert "ReduceMean" not in [n.op_type for n in model.graph.node]


def test_policies_share_ranges(plain: onnx.ModelProto, batch: NDArray[np.float32]) -> None:
    """What a runtime fuses depends on which tensors leave the graph; their values must not."""
    _SEEN[:] = [batch]
    found = [
        calibrate(plain, place_qdq(plain, shipped_policy(name)).observed, _batches)
        for name in ("onnx", "openvino", "tensorrt")
    ]
    for one, other in pairwise(found):
        both = set(one) & set(other)
        assert both
        assert {name: one[name] for name in both} == {name: other[name] for name in both}


# What a contract finds: each change is one that some pass could make by mistake.


def test_a_quantised_graph_is_refused_where_a_float_one_is_needed(
    plain: onnx.ModelProto, batch: NDArray[np.float32]
) -> None:
    _SEEN[:] = [batch]
    with pytest.raises(BuildError, match="quantised already"):
        PassContract("It", frozenset({Need.FLOAT})).check_before(_quantized(plain))
