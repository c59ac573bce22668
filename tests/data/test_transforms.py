"""Training transforms keep image and label aligned and depend on (seed, epoch, sample) only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.data.sample import Dataset, Sample
from segdeploy.data.transforms import AugmentSpec, TrainingView, TrainTransform, sample_seed

PLAIN = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
STILL = AugmentSpec(crop=(40, 50), scale=(1.0, 1.0), flip=0.0, jitter=0.0)


def _ramp(height: int = 60, width: int = 80) -> Sample:
    """Each pixel shows where it is: red and label say the column, green the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([columns * 3, rows * 3, np.full_like(rows, 200)], axis=-1)
    return Sample("ramp", image, columns)


def _pair(transform: TrainTransform, sample: Sample, seed: int) -> tuple[torch.Tensor, ...]:
    image, label = transform(sample, seed)
    assert image.dtype == torch.float32
    assert label.dtype == torch.int64
    assert type(image) is type(label) is torch.Tensor
    assert image.shape == (3, *transform.augment.crop)
    assert label.shape == transform.augment.crop
    return image, label


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.6, 0.6), (2.0, 2.0), (0.5, 2.0), (1.37, 1.37)])
def test_image_and_label_stay_aligned_under_scale_crop_and_flip(
    scale: tuple[float, float],
) -> None:
    transform = TrainTransform(
        AugmentSpec(crop=(32, 36), scale=scale, flip=0.5, jitter=0.0), PLAIN, 200
    )
    flipped = set()
    for seed in range(12):
        image, label = _pair(transform, _ramp(), seed)
        inside = label != 255
        error = image[0] / 3 - label  # Red says the column of the picture, the label its own.
        core = inside & (label > 1) & (label < 78)
        # Nearest sampling is off by half a pixel of the coarser grid at most, and not to one side.
        coarse = max(1.0, 1 / scale[0])
        assert error[core].abs().max() <= 0.5 * coarse + 0.3
        assert abs(float(error[core].mean())) <= 0.15 * coarse
        columns = label[0][label[0] != 255]
        flipped.add(bool(columns[0] > columns[-1]))
    assert flipped == {True, False}


def test_without_scale_flip_and_jitter_a_crop_is_a_cutout() -> None:
    transform, sample = TrainTransform(STILL, PLAIN, 200), _ramp()
    corners = set()
    for seed in range(8):
        image, label = _pair(transform, sample, seed)
        left, top = int(label[0, 0]), int(image[1, 0, 0] / 3)
        corners.add((top, left))
        cutout = sample.image[top : top + 40, left : left + 50].transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), cutout)
        np.testing.assert_array_equal(label, sample.label[top : top + 40, left : left + 50])
    assert len(corners) > 4


@pytest.mark.parametrize(("classes", "ignored"), [(5, 255), (300, 65535)])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("levels", [1.0, 255.0])
def test_padding_is_ignored_in_labels_and_near_zero_in_images(
    classes: int, ignored: int, order: str, levels: float
) -> None:
    mean = (0.1 * levels, 0.5 * levels, 0.9 * levels)
    std = (0.25 * levels,) * 3
    spec = PreprocessSpec(channel_order=order, scale=levels / 255, mean=mean, std=std)
    augment = AugmentSpec(crop=(100, 120), scale=(1.0, 1.0), flip=0.0, jitter=0.0)
    image, label = _pair(TrainTransform(augment, spec, classes), _ramp(), 0)
    padded = label == ignored
    assert int(padded.sum()) == 100 * 120 - 60 * 80
    assert image[:, padded].abs().max() < 0.5 / 255 / 0.25 + 1e-3


def test_ignored_pixels_stay_ignored() -> None:
    sample = _ramp()
    sample.label[:, :40] = 255
    augment = AugmentSpec(crop=(32, 36), scale=(0.5, 2.0), flip=0.5, jitter=0.0)
    transform = TrainTransform(augment, PLAIN, 200)
    for seed in range(8):
        image, label = _pair(transform, sample, seed)
        found = set(label.flatten().tolist())
        assert found <= {255, *range(40, 80)}
        assert (image[0][label < 255] >= 3 * 39).all()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_values_equal_the_reference_normalisation(order: str) -> None:
    spec = PreprocessSpec(channel_order=order)
    rng = np.random.default_rng(0)
    sample = Sample("s", rng.integers(0, 256, (40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8))
    image, _ = _pair(TrainTransform(STILL, spec, 5), sample, 0)
    np.testing.assert_array_equal(image.numpy(), normalize_image(sample.image, spec))


def test_colour_changes_touch_the_image_only() -> None:
    augment = AugmentSpec(crop=(60, 80), scale=(1.0, 1.0), flip=0.0, jitter=0.4, hue=0.1)
    image, label = _pair(TrainTransform(augment, PLAIN, 200), _ramp(), 1)
    np.testing.assert_array_equal(label, _ramp().label)
    assert np.abs(image.numpy() - _ramp().image.transpose(2, 0, 1)).max() > 5


def test_the_same_seed_gives_the_same_pair_whatever_was_drawn_before() -> None:
    transform = TrainTransform(AugmentSpec(crop=(32, 36)), PreprocessSpec(), 200)
    first = _pair(transform, _ramp(), 5)
    _pair(transform, _ramp(), 6)
    torch.manual_seed(123)
    again = _pair(transform, _ramp(), 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = _pair(transform, _ramp(), 6)
    assert not torch.equal(first[0], other[0])


def test_the_global_generator_is_left_untouched() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    _pair(TrainTransform(AugmentSpec(crop=(32, 36)), PLAIN, 200), _ramp(), 5)
    assert torch.equal(before, torch.get_rng_state())


def _pixels(pair: tuple[torch.Tensor, torch.Tensor]) -> NDArray[np.float32]:
    """As NumPy, so that workers send plain bytes and leave no shared memory behind."""
    return pair[0].numpy().copy()


def _batches(view: TrainingView, order: list[int], workers: int) -> dict[int, NDArray[np.float32]]:
    loader: DataLoader[NDArray[np.float32]] = DataLoader(
        view,  # type: ignore[arg-type]  # The loader gives what collate_fn makes.
        sampler=order,
        batch_size=None,
        num_workers=workers,
        collate_fn=_pixels,  # type: ignore[arg-type]  # Without a batch size it gets one pair.
    )
    return dict(zip(order, loader, strict=True))


def test_samples_do_not_depend_on_workers_or_order(synthetic_val: Dataset) -> None:
    transform = TrainTransform(AugmentSpec(crop=(48, 48)), PreprocessSpec(), 5)
    view = TrainingView(synthetic_val, transform, seed=3, epoch=2)
    alone = _batches(view, [0, 1, 2, 3], 0)
    shared = _batches(view, [3, 1, 0, 2], 1)
    assert all(np.array_equal(alone[i], shared[i]) for i in range(4))
    later = TrainingView(synthetic_val, transform, seed=3, epoch=3)
    assert not any(np.array_equal(alone[i], later[i][0].numpy()) for i in range(4))


def test_sample_seeds_differ_and_fit_into_63_bits() -> None:
    seeds = [sample_seed(s, e, i) for s in range(4) for e in range(8) for i in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # One in two on average in every bit that a 32-bit generator would look at.
    bits = np.array([[seed >> b & 1 for b in range(32)] for seed in seeds])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06
