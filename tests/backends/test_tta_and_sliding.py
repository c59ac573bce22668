"""Views and windows against plain loops in torch; what cannot be run by them is said."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from segdeploy.backends import tta as tta_module
from segdeploy.backends.predictor import Predictor
from segdeploy.backends.pytorch import ModuleSession
from segdeploy.backends.sliding import SlidingWindow, run_windows
from segdeploy.backends.tta import TtaSpec, as_logits, average_views, probabilities
from segdeploy.core.contract import InputKind, IoContract, OutputKind, contract_tensors
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, normalize_image
from segdeploy.core.task import Task

SPEC = PreprocessSpec()
SHAPE = (70, 101)
TASKS = [(Task.MULTICLASS, 5), (Task.BINARY, 1)]


def _image(height: int = SHAPE[0], width: int = SHAPE[1]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _net(num: int) -> nn.Module:
    """A net that sees borders, scale, and left from right."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 7, padding=3), nn.ReLU(), nn.Conv2d(8, num, 7, padding=3))


def _predictor(
    task: Task = Task.MULTICLASS,
    num: int = 5,
    *,
    tta: TtaSpec | None = None,
    window: SlidingWindow | None = None,
    size: tuple[int, int] | None = None,
    spec: PreprocessSpec = SPEC,
) -> Predictor:
    inputs, outputs = contract_tensors(IoContract(), task, num, size)
    return Predictor(ModuleSession(_net(num), inputs, outputs), spec, task, tta=tta, window=window)


def _logits(image: NDArray[np.uint8], num: int) -> Tensor:
    """Return (1, K, h, w)."""
    with torch.inference_mode():
        found: Tensor = _net(num)(torch.from_numpy(normalize_image(image, SPEC))[None])
        return found


def _slow_windows(
    image: NDArray[np.uint8], window: tuple[int, int], stride: tuple[int, int], num: int
) -> Tensor:
    """Sum and count with torch, one window at a time, by the definition."""
    height, width = image.shape[:2]
    padded = np.empty((max(height, window[0]), max(width, window[1]), 3), np.uint8)
    padded[:] = [round(255 * m) for m in SPEC.mean]
    padded[:height, :width] = image
    total = torch.zeros(num, *padded.shape[:2], dtype=torch.float64)
    count = torch.zeros(padded.shape[:2], dtype=torch.float64)
    top, is_last_row = 0, False
    while not is_last_row:
        is_last_row = top + window[0] >= padded.shape[0]
        y = min(top, padded.shape[0] - window[0])
        left, is_last = 0, False
        while not is_last:
            is_last = left + window[1] >= padded.shape[1]
            x = min(left, padded.shape[1] - window[1])
            cut = padded[y : y + window[0], x : x + window[1]]
            total[:, y : y + window[0], x : x + window[1]] += _logits(cut, num)[0]
            count[y : y + window[0], x : x + window[1]] += 1
            left += stride[1]
        top += stride[0]
    return (total / count)[:, :height, :width]


@pytest.mark.parametrize(("task", "num"), TASKS)
@pytest.mark.parametrize(
    ("window", "overlap", "stride"),
    [((32, 40), 0.5, (16, 20)), ((32, 40), 0.0, (32, 40)), ((32, 33), 0.3, (22, 23)),
     ((90, 40), 0.5, (45, 20)), ((90, 120), 0.75, (22, 30))],
)  # fmt: skip
def test_windows_equal_a_slow_loop(
    task: Task, num: int, window: tuple[int, int], overlap: float, stride: tuple[int, int]
) -> None:
    predictor = _predictor(task, num, window=SlidingWindow(window, overlap))
    found = predictor.predict(_image(), with_confidence=True)
    expected = _slow_windows(_image(), window, stride, num)
    _check(found, expected, task)


def _check(found: object, logits: Tensor, task: Task) -> None:
    """Compare a prediction with what float64 logits (K, H, W) mean."""
    foreground = torch.sigmoid(logits[0])
    if task is Task.BINARY:
        chances = torch.stack([1 - foreground, foreground])
    else:
        chances = logits.softmax(0)
    labels, confidence = vars(found)["labels"], vars(found)["confidence"]
    best = chances.topk(2, dim=0)
    is_clear = (best.values[0] - best.values[1] > 1e-5).numpy()
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(labels[is_clear], best.indices[0].numpy()[is_clear])
    np.testing.assert_allclose(confidence, best.values[0].numpy(), atol=1e-5)
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize(("task", "num"), TASKS)
def test_one_window_over_the_image_is_plain_inference(task: Task, num: int) -> None:
    plain = _predictor(task, num).predict(_image(), with_confidence=True)
    once = _predictor(task, num, window=SlidingWindow(SHAPE)).predict(
        _image(), with_confidence=True
    )
    np.testing.assert_array_equal(plain.labels, once.labels)
    assert plain.confidence is not None
    assert once.confidence is not None
    np.testing.assert_array_equal(plain.confidence, once.confidence)


@pytest.mark.parametrize("length", range(32, 120, 7))
@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.95])
def test_windows_cover_every_pixel_and_no_more_than_they_must(length: int, overlap: float) -> None:
    window = SlidingWindow((32, 32), overlap)
    tops = sorted({top for top, _ in window.corners((length, 32))})
    covered = {row for top in tops for row in range(top, top + 32)}
    assert covered == set(range(length))
    stride = max(1, round(32 * (1 - overlap)))
    assert all(b - a <= stride for a, b in pairwise(tops))
    assert len(tops) - 1 < (length - 32) / stride + 1
    assert len(list(window.corners((length, 32)))) == len(tops)


def test_memory_is_one_map_and_one_window() -> None:
    image, num = np.zeros((512, 512, 3), np.uint8), 8
    given = np.zeros((num, 64, 64), np.float32)
    tracemalloc.start()
    run_windows(image, SlidingWindow((64, 64), 0.5), lambda _: given, (0, 0, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_map = (num + 2) * 512 * 512 * 4
    assert peak < 1.5 * one_map


def _slow_views(
    image: NDArray[np.uint8], scales: tuple[float, ...], num: int, run: Callable[..., Tensor]
) -> Tensor:
    """Mean probabilities (K, H, W) with torch; Pillow resizes and mirrors the picture."""
    total, picture = [], Image.fromarray(image)
    for scale in scales:
        height, width = (round(side * scale) for side in image.shape[:2])
        scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
        for is_flipped in (False, True):
            view = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else scaled
            logits = run(np.array(view), num).double()
            logits = logits[0] if logits.ndim == 4 else logits
            chances = torch.sigmoid(logits) if num == 1 else logits.softmax(0)
            chances = chances.flip(2) if is_flipped else chances
            total.append(
                functional.interpolate(
                    chances[None], image.shape[:2], mode="bilinear", antialias=True
                )[0]
            )
    return torch.stack(total).mean(0)


def _as_logits(chances: Tensor) -> Tensor:
    return torch.logit(chances) if len(chances) == 1 else chances.log()


@pytest.mark.parametrize(("task", "num"), TASKS)
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.25), (0.61, 1.9)])
def test_views_equal_a_slow_loop(task: Task, num: int, scales: tuple[float, ...]) -> None:
    predictor = _predictor(task, num, tta=TtaSpec(scales, flip=True))
    found = predictor.predict(_image(), with_confidence=True)
    _check(found, _as_logits(_slow_views(_image(), scales, num, _logits)), task)


def test_views_of_windows_equal_a_slow_loop() -> None:
    def run(view: NDArray[np.uint8], num: int) -> Tensor:
        return _slow_windows(view, (48, 64), (24, 32), num)

    spec = TtaSpec((0.75, 1.25), flip=True)
    found = _predictor(tta=spec, window=SlidingWindow((48, 64))).predict(
        _image(), with_confidence=True
    )
    _check(found, _as_logits(_slow_views(_image(), (0.75, 1.25), 5, run)), Task.MULTICLASS)


def test_scales_without_flip_are_run_once_each() -> None:
    seen = []

    def run(view: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(view.shape[:2])
        return np.zeros((5, *view.shape[:2]), np.float32)

    found = average_views(_image(), TtaSpec((0.5, 1.0)), run, SPEC, Task.MULTICLASS)
    assert seen == [(35, 50), (70, 101)]
    np.testing.assert_allclose(found, 0.2, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("task", "num"), TASKS)
def test_extreme_logits_give_probabilities_that_decide_the_same(task: Task, num: int) -> None:
    logits = np.random.default_rng(0).normal(0, 1e4, (num, 20, 30)).astype(np.float32)
    chances = probabilities(logits.copy(), task)
    exact = torch.from_numpy(logits).double()
    expected = torch.sigmoid(exact) if num == 1 else exact.softmax(0)
    np.testing.assert_allclose(chances, expected, atol=1e-6)
    again = as_logits(chances, task)
    assert np.isfinite(again).all()
    if num == 1:
        np.testing.assert_array_equal(again > 0, logits > 0)
    else:
        np.testing.assert_array_equal(again.argmax(0), logits.argmax(0))


def test_views_are_of_the_models_size_and_the_map_of_the_images() -> None:
    spec = PreprocessSpec(size_rule=SizeRule.SHORTER_SIDE, size=(40, 40))
    plain = _predictor(spec=spec).predict(_image(), with_confidence=True)
    found = _predictor(spec=spec, tta=TtaSpec((1.0,))).predict(_image(), with_confidence=True)
    assert found.labels.shape == SHAPE
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert found.confidence is not None
    assert plain.confidence is not None
    np.testing.assert_allclose(found.confidence, plain.confidence, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flip", TtaSpec((1.0,), flip=True)), ("0.75,1", TtaSpec((0.75, 1.0))),
     ("flip, 0.75,1.0,1.25", TtaSpec((0.75, 1.0, 1.25), flip=True))],
)  # fmt: skip
def test_views_are_read_from_text(text: str, expected: TtaSpec) -> None:
    assert TtaSpec.parse(text) == expected


@pytest.mark.parametrize("text", ["", "flop", "flip,,1", "0", "-1", "nan", "inf", "1,1", "99"])
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="augmentation") as caught:
        TtaSpec.parse(text)
    assert "flip,0.75" in caught.value.hint


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_is_no_part_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        SlidingWindow((64, 64), overlap)


def test_tiny_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        SlidingWindow((64, 8))


class _Session:
    outputs = ()

    def __init__(self, io: IoContract) -> None:
        self.inputs, _ = contract_tensors(io, Task.MULTICLASS, 5, None)

    def run(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        assert batch.dtype == np.uint8
        return {"logits": _logits(batch[0], 5).numpy()}

    def bind(self, batch: NDArray[Any]) -> Callable[[], None]:
        raise NotImplementedError

    def close(self) -> None: ...


@pytest.mark.parametrize("output", [OutputKind.LABELS, OutputKind.LABELS_CONFIDENCE])
@pytest.mark.parametrize(
    "change", [{"tta": TtaSpec(flip=True)}, {"window": SlidingWindow((64, 64))}]
)
def test_an_artifact_without_logits_is_refused(output: OutputKind, change: dict[str, Any]) -> None:
    io = IoContract(output=output)
    with pytest.raises(ConfigError, match="gives labels") as caught:
        Predictor(_Session(io), SPEC, Task.MULTICLASS, io, **change)
    assert "logits" in caught.value.hint


def test_an_image_contract_takes_the_same_views() -> None:
    """Its graph normalises by itself: it gets uint8 pixels."""
    io = IoContract(input=InputKind.IMAGE)
    tta, window = TtaSpec((0.75, 1.0), flip=True), SlidingWindow((48, 64))
    graph = Predictor(_Session(io), SPEC, Task.MULTICLASS, io, tta=tta, window=window)
    plain = _predictor(tta=tta, window=window)
    np.testing.assert_array_equal(graph.predict(_image()).labels, plain.predict(_image()).labels)


FIXED = PreprocessSpec(size_rule=SizeRule.FIXED, size=(48, 64))


@pytest.mark.parametrize(
    "change",
    [{"tta": TtaSpec((0.75, 1.0))}, {"window": SlidingWindow((64, 64))},
     {"tta": TtaSpec((1.5,)), "window": SlidingWindow((48, 48))}],
)  # fmt: skip
def test_a_fixed_size_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="48x64 only") as caught:
        _predictor(size=(48, 64), spec=FIXED, **change)
    assert "--sliding-window 48x64" in caught.value.hint


def test_a_fixed_size_can_be_flipped() -> None:
    found = _predictor(size=(48, 64), spec=FIXED, tta=TtaSpec(flip=True)).predict(_image())
    assert found.labels.shape == SHAPE


def test_windows_of_a_fixed_size_are_cut_from_the_image_itself() -> None:
    """Not from the image shrunk to one window, which a plain run of such an artifact takes."""
    window = SlidingWindow((48, 64))
    found = _predictor(size=(48, 64), spec=FIXED, window=window).predict(_image())
    np.testing.assert_array_equal(found.labels, _predictor(window=window).predict(_image()).labels)


def test_planes_shrink_with_antialias_as_torch_does() -> None:
    planes = np.random.default_rng(0).random((3, 50, 61), np.float32)
    for size in ((20, 30), (70, 99), (20, 99)):
        found = tta_module._resize_planes(planes, size)
        expected = functional.interpolate(
            torch.from_numpy(planes)[None], size, mode="bilinear", antialias=True
        )[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
