"""Ranges from images: the same in any order and grouping, right on the values, clear on faults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segdeploy.core.errors import DataError
from segdeploy.core.target import ClipMethod
from segdeploy.graph import calibrate as calibrate_module
from segdeploy.graph.bias_correction import measure_shifts
from segdeploy.graph.calibrate import calibrate, find_channel_peaks, find_peaks
from segdeploy.graph.equalization import equalize
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.qdq import insert_qdq

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]
Images = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def images() -> Images:
    rng = np.random.default_rng(5)
    sizes = [(33, 47), (64, 40), (35, 35), (48, 64)]
    return [rng.standard_normal((1, 3, *size)).astype(np.float32) for size in sizes]


def _watch(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return watched


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_change_a_bit(
    small_model: onnx.ModelProto, images: Images, seed: int
) -> None:
    tensors = place_qdq(small_model).observed
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[i] for i in order]
    assert calibrate(small_model, tensors, lambda: shuffled) == calibrate(
        small_model, tensors, lambda: images
    )
    assert equalize(small_model, lambda: images) == equalize(small_model, lambda: shuffled)
    quantized = insert_qdq(
        small_model, place_qdq(small_model), calibrate(small_model, tensors, lambda: images)
    )
    shifts = measure_shifts(small_model, quantized, lambda: images)
    again = measure_shifts(small_model, quantized, lambda: shuffled)
    assert {k: v.tolist() for k, v in shifts.items()} == {k: v.tolist() for k, v in again.items()}


def test_batch_size_and_grouping_do_not_change_a_bit(
    small_model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    alike = [rng.standard_normal((1, 3, 40, 40)).astype(np.float32) for _ in range(6)]
    tensors = place_qdq(small_model).observed
    first = calibrate(small_model, tensors, lambda: alike)
    for size in (2, 3, 6):
        batches = [np.concatenate(alike[i : i + size]) for i in range(0, 6, size)]
        assert calibrate(small_model, tensors, partial(iter, batches)) == first
    monkeypatch.setattr(calibrate_module, "GROUP_BYTES", 1)  # One tensor a pass.
    assert calibrate(small_model, tensors, lambda: iter(alike)) == first


def test_a_second_copy_of_every_image_changes_nothing(
    small_model: onnx.ModelProto, images: Images
) -> None:
    tensors = place_qdq(small_model).observed
    once = calibrate(small_model, tensors, lambda: images)
    assert calibrate(small_model, tensors, lambda: [*images, *images]) == once


def test_at_most_a_group_of_activations_leaves_the_graph_at_once(
    small_model: onnx.ModelProto, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = place_qdq(small_model).observed
    limit = 2 * 16 * 48 * 64 * 4
    monkeypatch.setattr(calibrate_module, "GROUP_BYTES", limit)
    sizes: list[int] = []
    true_run = calibrate_module.run_one

    def spy(session: Any, batch: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = true_run(session, batch)
        sizes.append(sum(values.nbytes for values in found.values()))
        return found

    monkeypatch.setattr(calibrate_module, "run_one", spy)
    calibrate(small_model, tensors, lambda: images)
    assert max(sizes) <= limit
    assert len(sizes) > 2 * len(images)


def test_ranges_match_a_slow_search_on_the_activation_itself(
    small_model: onnx.ModelProto, run: Run, images: Images
) -> None:
    found = calibrate(small_model, ["total"], lambda: images)["total"]
    watched = _watch(small_model, "total")
    values = np.concatenate([run(watched, b)[0].ravel() for b in images]).astype(np.float64)
    assert found.abs_max == pytest.approx(np.abs(values).max(), rel=1e-6)

    def error(clip: float) -> float:
        step = clip / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        return float(np.mean((values - rounded) ** 2))

    best = min(error(c) for c in np.linspace(0.2, 1, 81) * found.abs_max)
    assert error(found.clip) <= 1.05 * best
    clipped = np.mean(np.abs(values) > 127.5 * found.scale)
    assert found.clipped_share == pytest.approx(clipped, abs=2e-3)


def test_what_hardswish_maps_to_zero_does_not_widen_a_range(
    small_model: onnx.ModelProto, images: Images
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    bias = next(t for t in model.graph.initializer if t.name == "stem.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, -1000, np.float32), "stem.bias"))
    found = calibrate(model, ["stem", "deep_act"], lambda: images)
    assert found["stem"].clip <= 3.0
    assert found["stem"].floor == -3.0
    assert found["stem"].abs_max > 900  # The fact is of the values as they are.
    assert found["stem"].clipped_share == found["stem"].bytes.clipped_share == 1
    assert found["deep_act"].floor is None


@pytest.mark.parametrize(
    ("readers", "lowest"),
    [
        ([{}], 2.5),  # ONNX's own slope is 0.2.
        ([{"alpha": 1 / 6}], 3.0),
        ([{}, {"alpha": 0.125}], 4.0),
        ([{"alpha": -0.2}], 1000.0),  # Falling: there is no floor.
        ([{}, None], 1000.0),  # A Relu reads it too.
    ],
)
def test_the_floor_is_that_of_each_hard_sigmoids_own_slope(
    readers: list[dict[str, float] | None], lowest: float
) -> None:
    helper = onnx.helper
    nodes = [helper.make_node("Identity", ["tensor"], ["x"], name="x")]
    for i, given in enumerate(readers):
        kind = "Relu" if given is None else "HardSigmoid"
        nodes.append(helper.make_node(kind, ["x"], [f"y{i}"], name=f"y{i}"))
        nodes[-1].attribute.extend(helper.make_attribute(*each) for each in (given or {}).items())
    value = helper.make_tensor_value_info
    ends = [value(f"y{i}", TensorProto.FLOAT, None) for i in range(len(readers))]
    inputs = [value("tensor", TensorProto.FLOAT, [1, 1, 8, 8])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, ends),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    found = calibrate(model, ["x"], lambda: [np.full((1, 1, 8, 8), -1000, np.float32)])
    assert found["x"].clip == lowest
    assert found["x"].floor == (-lowest if lowest < 1000 else None)
    assert found["x"].abs_max == 1000


def test_peaks_are_those_of_the_activation(
    small_model: onnx.ModelProto, run: Run, images: Images
) -> None:
    values = [np.abs(run(_watch(small_model, "deep"), b)[0]) for b in images]
    peaks = find_peaks(small_model, ["deep"], lambda: images)
    assert peaks["deep"] == pytest.approx(max(float(v.max()) for v in values), rel=1e-6)
    channels = find_channel_peaks(small_model, ["deep"], lambda: images)["deep"]
    slow = np.max([v.max(axis=(0, 2, 3)) for v in values], axis=0)
    np.testing.assert_allclose(channels, slow, rtol=1e-6)


@pytest.mark.parametrize("method", list(ClipMethod))
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (3, 200)])
def test_one_image_of_any_size_is_enough(
    small_model: onnx.ModelProto, method: ClipMethod, size: tuple[int, int]
) -> None:
    batch = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    found = calibrate(small_model, place_qdq(small_model).observed, lambda: [batch], method)
    assert all(np.isfinite(r.scale) and r.scale > 0 for r in found.values())


def test_a_constant_image_gives_ranges(small_model: onnx.ModelProto) -> None:
    found = calibrate(
        small_model,
        place_qdq(small_model).observed,
        lambda: [np.zeros((1, 3, 32, 32), np.float32)],
    )
    assert found["tensor"].scale == 1.0
    assert all(np.isfinite(r.scale) and r.scale > 0 for r in found.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_give_nan_are_refused(
    small_model: onnx.ModelProto, images: Images, bad: float
) -> None:
    broken = images[0].copy()
    broken[0, 0, 5, 5] = bad
    tensors = place_qdq(small_model).observed
    given = [images[1], broken]
    for work in (
        lambda: calibrate(small_model, tensors, lambda: given),
        lambda: find_peaks(small_model, tensors, lambda: given),
        lambda: equalize(small_model, lambda: given),
    ):
        with pytest.raises(DataError, match="not finite on image 2"):
            work()


def test_weights_that_give_nan_are_refused(small_model: onnx.ModelProto, images: Images) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_model)
    bias = next(t for t in model.graph.initializer if t.name == "deep.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, np.nan, np.float32), "deep.bias"))
    with pytest.raises(DataError, match="not finite on image 1"):
        calibrate(model, ["tensor", "deep_act"], lambda: images)


def test_no_images_are_refused(small_model: onnx.ModelProto) -> None:
    for work in (
        lambda: calibrate(small_model, ["total"], list),
        lambda: find_peaks(small_model, ["total"], list),
        lambda: equalize(small_model, list),
    ):
        with pytest.raises(DataError, match="at least one image"):
            work()
