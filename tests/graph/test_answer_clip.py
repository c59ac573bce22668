"""The clip by the answer: the least error of the outputs, counted again in NumPy, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from segdeploy.graph.answer_clip import SHARES, narrow_by_answer, stem_maps
from segdeploy.graph.calibrate import calibrate
from segdeploy.graph.clipping import AnswerChoice, Histogram, choose_clip, clip_at

Batch = NDArray[np.float32]
WIDTHS = np.array([20.0, 3.0, 0.3, 0.1], np.float32)


def graph(*, depthwise: bool = True, is_stem: bool = False) -> onnx.ModelProto:
    """A first convolution with uneven channels; one that makes them alike; as a stem one more."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4, 3, 1, 1)).astype(np.float32) * WIDTHS[:, None, None, None]
    second = np.abs(rng.normal(size=(4, 1, 3, 3))).astype(np.float32) / WIDTHS[:, None, None, None]
    if not depthwise:
        second = np.tile(second, (1, 4, 1, 1))
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["map"], name="relu"),
        helper.make_node(
            "Conv", ["map", "second"], ["y"], name="second", group=4 if depthwise else 1
        ),
    ]
    if is_stem:
        nodes[-1].output[0] = "b"
        nodes.append(helper.make_node("Conv", ["b", "third"], ["y"], name="third"))
    third = np.ones((4, 4, 1, 1), np.float32)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "h", "w"])],
        [
            numpy_helper.from_array(first, "first"),
            numpy_helper.from_array(second, "second"),
            *([numpy_helper.from_array(third, "third")] if is_stem else []),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_batches(count: int = 3) -> list[Batch]:
    rng = np.random.default_rng(1)
    return [rng.standard_t(3, size=(1, 3, 20, 24 + k)).astype(np.float32) for k in range(count)]


def answer(model: onnx.ModelProto, batch: Batch, scale: float | None, zero: int) -> NDArray[Any]:
    first, second = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    values = np.maximum(np.einsum("oi,ihw->ohw", first[:, :, 0, 0], batch[0]), 0)
    if scale is not None:
        values = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    full = [ndimage.correlate(values[c], second[c, 0], mode="constant") for c in range(4)]
    return np.stack(full)[:, 1:-1, 1:-1]


def test_the_share_with_the_least_error_of_the_answer() -> None:
    model, batches = graph(), make_batches()
    before = calibrate(model, ["map"], lambda: batches)
    histogram = Histogram()
    for batch in batches:
        histogram.add(answer_map(model, batch))
    errors = []
    for share in SHARES:
        grid = clip_at(histogram, before["map"], share).bytes
        off = [
            answer(model, each, grid.scale, grid.zero_point) - answer(model, each, None, 0)
            for each in batches
        ]
        errors.append(sum(float(np.mean(np.square(each))) for each in off))
    best = SHARES[int(np.argmin(errors))]
    assert best < 1  # Else this graph would show nothing.
    everything = Histogram()  # Of more images than those that are asked: facts are of all.
    for batch in [*batches, 5 * batches[0]]:
        everything.add(answer_map(model, batch))
    counted = {"map": everything}
    found = narrow_by_answer(model, before, counted, lambda: batches)["map"]
    assert found.bytes.high == pytest.approx(best * before["map"].bytes.high, rel=1e-6)
    assert found.clip == pytest.approx(best * before["map"].clip)
    assert found.abs_max == everything.abs_max > before["map"].abs_max
    maps = [answer_map(model, each).ravel() for each in [*batches, 5 * batches[0]]]
    whole = np.rint(np.concatenate(maps) / found.bytes.scale) + found.bytes.zero_point
    assert found.bytes.clipped_share == pytest.approx(float(np.mean(whole > 255)), abs=2e-3)
    assert found.answer == AnswerChoice(best, SHARES, len(batches))
    assert narrow_by_answer(model, before, counted, lambda: batches[::-1])["map"] == found


def answer_map(model: onnx.ModelProto, batch: Batch) -> Batch:
    first = numpy_helper.to_array(model.graph.initializer[0])
    found: Batch = np.maximum(np.einsum("oi,ihw->ohw", first[:, :, 0, 0], batch[0]), 0)
    return found


def test_which_maps_are_asked_for() -> None:
    assert stem_maps(graph(is_stem=True)) == ["map"]
    assert stem_maps(graph(is_stem=True, depthwise=False)) == []


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3])
def test_ends_and_what_lies_beyond_them(share: float) -> None:
    values = np.random.default_rng(2).normal(1, 2, 50_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    chosen = choose_clip(histogram)
    found = clip_at(histogram, chosen, share)
    if share == 1:
        assert found == chosen
    far = share * max(-chosen.bytes.low, chosen.bytes.high)
    assert found.bytes.high == pytest.approx(min(far, chosen.bytes.high), abs=found.bytes.scale)
    assert found.bytes.low == pytest.approx(max(-far, chosen.bytes.low), abs=found.bytes.scale)
    grid = np.rint(values / found.bytes.scale) + found.bytes.zero_point
    assert found.bytes.clipped_share == pytest.approx(
        float(np.mean((grid < 0) | (grid > 255))), abs=2e-3
    )
    beyond = float(np.mean(np.abs(values) > 127.5 * found.scale))
    assert found.clipped_share == pytest.approx(beyond, abs=2e-3)
