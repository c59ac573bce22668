"""Counts of tensors, against torchmetrics and a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.metrics.confusion_torch import TensorConfusionMatrix

DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_classes=st.sampled_from([1, 2, 11, 150, 255]),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
)
def test_counts_equal_a_slow_loop(
    seed: int, num_classes: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    rng = np.random.default_rng(seed)
    label, prediction = rng.integers(0, num_classes, (2, 2, 5, 7))
    label[rng.random(label.shape) < 0.2] = 255
    expected = np.zeros((num_classes, num_classes), np.int64)
    for truth, guess in zip(label.flat, prediction.flat, strict=True):
        if truth != 255:
            expected[truth, guess] += 2
    counts = TensorConfusionMatrix(num_classes)
    for _ in range(2):
        counts.update(
            torch.from_numpy(label).to(dtypes[0]), torch.from_numpy(prediction).to(dtypes[1])
        )
    np.testing.assert_array_equal(counts.matrix.numpy(), expected)


def test_counts_equal_torchmetrics() -> None:
    prepare_torchvision()
    from torchmetrics.classification import MulticlassConfusionMatrix

    generator = torch.Generator().manual_seed(0)
    reference, counts = MulticlassConfusionMatrix(11, ignore_index=255), TensorConfusionMatrix(11)
    for _ in range(3):
        label = torch.randint(0, 12, (2, 30, 40), generator=generator)
        label[label == 11] = 255
        prediction = torch.randint(0, 11, label.shape, generator=generator)
        reference.update(prediction, label)
        counts.update(label, prediction)
    assert torch.equal(counts.matrix, reference.compute().long())


@pytest.mark.gpu
def test_counts_on_a_gpu_equal_those_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 11, (2, 30, 40), generator=generator)
    prediction = torch.randint(0, 11, label.shape, generator=generator)
    here, there = TensorConfusionMatrix(11), TensorConfusionMatrix(11, "cuda")
    here.update(label, prediction)
    there.update(label.cuda(), prediction.cuda())
    assert there.matrix.device.type == "cuda"
    assert torch.equal(there.matrix.cpu(), here.matrix)


@pytest.mark.parametrize("stray", [3, 254])
def test_a_label_that_is_no_class_is_found(stray: int) -> None:
    counts = TensorConfusionMatrix(3)
    counts.update(torch.tensor([0, stray], dtype=torch.uint8), torch.tensor([0, 0]))
    with pytest.raises(DataError, match="none of 3 classes"):
        _ = counts.matrix


@pytest.mark.parametrize("stray", [3, 255])
def test_a_prediction_that_is_no_class_is_found(stray: int) -> None:
    counts = TensorConfusionMatrix(3)
    counts.update(torch.tensor([0, 0]), torch.tensor([0, stray], dtype=torch.uint8))
    with pytest.raises(ArtifactError, match="none of 3 classes"):
        _ = counts.matrix


@pytest.mark.parametrize("stray", [-1, 256])
def test_ids_beyond_a_byte_are_refused_at_once(stray: int) -> None:
    counts = TensorConfusionMatrix(3)
    with pytest.raises(DataError, match=r"0\.\.255"):
        counts.update(torch.tensor([0, stray]), torch.tensor([0, 0]))
    with pytest.raises(ArtifactError, match=r"0\.\.255"):
        counts.update(torch.tensor([0, 0]), torch.tensor([0, stray]))
    with pytest.raises(ArtifactError):
        counts.update(torch.tensor([0, 0]), torch.tensor([0.0, 1.0]))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        TensorConfusionMatrix(3).update(torch.zeros(2, 2).long(), torch.zeros(4).long())


@pytest.mark.parametrize("num_classes", [0, 256])
def test_a_class_count_that_does_not_fit_into_bytes_is_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        TensorConfusionMatrix(num_classes)
