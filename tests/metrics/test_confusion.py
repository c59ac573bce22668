"""The confusion matrix, against slow loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.task import Task
from segdeploy.metrics import ConfusionMatrix, accumulate, count_labels, label_names


def _slow(label: NDArray[Any], prediction: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, guess in zip(label.flat, prediction.flat, strict=True):
        if truth != 255:
            matrix[int(truth), int(guess)] += 1
    return matrix


def _draw(seed: int, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, (2, 7, 9)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    return label, rng.integers(0, num_classes, label.shape).astype(np.uint8)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_classes=st.integers(1, 30),
    dtypes=st.tuples(*[st.sampled_from([np.uint8, np.uint16, np.int64])] * 2),
)
def test_counts_equal_a_slow_loop(
    seed: int, num_classes: int, dtypes: tuple[type[np.integer[Any]], ...]
) -> None:
    label, prediction = _draw(seed, num_classes)
    matrix = ConfusionMatrix(num_classes)
    matrix.update(label.astype(dtypes[0]), prediction.astype(dtypes[1]))
    np.testing.assert_array_equal(matrix.matrix, _slow(label, prediction, num_classes))


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), cut=st.integers(0, 126))
def test_parts_add_up_to_the_whole(seed: int, cut: int) -> None:
    label, prediction = (a.ravel() for a in _draw(seed, 5))
    whole, first, second = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(label, prediction)
    first.update(label[:cut], prediction[:cut])
    second.update(label[cut:], prediction[cut:])
    np.testing.assert_array_equal((first + second).matrix, whole.matrix)


def test_the_matrix_handed_out_is_a_copy() -> None:
    matrix = ConfusionMatrix(2)
    matrix.matrix[:] = 7
    assert matrix.matrix.sum() == 0


def test_wide_labels_ignore_65535_and_count_class_255() -> None:
    matrix = ConfusionMatrix(300)
    matrix.update(np.array([[255, 299, 65535]], np.uint16), np.array([[255, 0, 3]], np.uint16))
    assert matrix.matrix[255, 255] == 1
    assert matrix.matrix[299, 0] == 1
    assert matrix.matrix.sum() == 2


@pytest.mark.parametrize(("dtype", "stray"), [(np.uint8, 3), (np.int64, -1), (np.uint8, 254)])
def test_a_label_id_that_is_no_class_is_refused(dtype: type[Any], stray: int) -> None:
    label = np.array([[0, stray]], dtype)
    with pytest.raises(DataError, match=rf"street\.png holds the id {stray}"):
        ConfusionMatrix(3).update(label, np.zeros((1, 2), np.uint8), "street.png")


def test_a_label_of_floats_is_refused() -> None:
    with pytest.raises(DataError, match="float64"):
        ConfusionMatrix(3).update(np.zeros((1, 2)), np.zeros((1, 2), np.uint8))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("stray", [3, 254, 255])
def test_a_predicted_id_that_is_no_class_is_refused(dtype: type[Any], stray: int) -> None:
    with pytest.raises(ArtifactError, match=f"id {stray}"):
        ConfusionMatrix(3).update(np.zeros((1, 2), np.uint8), np.full((1, 2), stray, dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_what_is_predicted_under_an_ignored_pixel_does_not_matter(dtype: type[Any]) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[1, 255]], np.uint8), np.array([[2, 200]], dtype))
    assert matrix.matrix.sum() == matrix.matrix[1, 2] == 1


def test_a_refused_label_counts_nothing() -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(DataError):
        matrix.update(np.array([[0, 9]], np.uint8), np.zeros((1, 2), np.uint8))
    assert matrix.matrix.sum() == 0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        ConfusionMatrix(3).update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


def test_counts_of_another_class_count_do_not_add() -> None:
    with pytest.raises(ValueError, match="cannot add"):
        _ = ConfusionMatrix(3) + ConfusionMatrix(2)


@dataclass(frozen=True)
class _Image:
    name: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def test_accumulate_counts_every_image_once() -> None:
    images = [
        _Image(f"{i}", np.full((3, 4, 3), i, np.uint8), np.full((3, 4), i % 3, np.uint8))
        for i in range(5)
    ]
    ticks: list[int] = []
    matrix, num_images = accumulate(
        images, lambda image: image[..., 0] // 3, 3, progress=lambda: ticks.append(1)
    )
    assert num_images == len(ticks) == 5
    np.testing.assert_array_equal(matrix.matrix, [[12, 12, 0], [12, 12, 0], [12, 0, 0]])


def test_accumulate_names_the_image_whose_label_has_another_size() -> None:
    image = _Image("street.png", np.zeros((3, 4, 3), np.uint8), np.zeros((4, 3), np.uint8))
    with pytest.raises(DataError, match=r"street\.png"):
        accumulate([image], lambda image: image[..., 0], 2)


def test_a_binary_task_has_two_label_ids() -> None:
    assert count_labels(Task.BINARY, 1) == 2
    assert label_names(Task.BINARY, ("road",)) == ("background", "road")
    assert len(set(label_names(Task.BINARY, ("background",)))) == 2
    assert label_names(Task.MULTICLASS, ("a", "b")) == ("a", "b")
