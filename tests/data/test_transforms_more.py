"""Sizes, flips and photometric changes of training; the table of presets."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, mean_colour, model_size
from segdeploy.data import DATASETS
from segdeploy.data import transforms as module
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.presets import PRESETS, find_preset
from segdeploy.data.sample import Sample
from segdeploy.data.transforms import TrainTransform

PLAIN = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
STILL = AugmentSpec(crop=(60, 80), scale=(1.0, 1.0), flip=0.0, jitter=0.0)


def _sample(height: int = 60, width: int = 80) -> Sample:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return Sample("random", image, rng.integers(0, 5, (height, width), np.uint8))


def _apply(spec: AugmentSpec, seed: int = 0, size: tuple[int, int] = (60, 80)) -> torch.Tensor:
    """Return image and label as one (4, h, w)."""
    image, label = TrainTransform(spec, PLAIN, 5)(_sample(*size), seed)
    return torch.cat([image, label[None].float()])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shorter_side": 40}, (40, 53)),
        ({"longer_side": 40}, (30, 40)),
        ({"stretch": (50, 44)}, (50, 44)),
        ({}, (60, 80)),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_base_size_comes_before_the_factor(
    change: dict[str, int], expected: tuple[int, int], factor: float
) -> None:
    spec = dataclasses.replace(STILL, crop=(90, 90), scale=(factor, factor), **change)  # type: ignore[arg-type]  # Some are pairs.
    inside = _apply(spec)[3] != 255
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert abs(int(rows) - expected[0] * factor) <= 0.5
    assert abs(int(columns) - expected[1] * factor) <= 0.5


def test_two_base_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="shorter_side and stretch"):
        AugmentSpec(crop=(60, 80), shorter_side=40, stretch=(50, 44))


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("vertical_flip", 1)])
def test_flips_mirror_image_and_label(name: str, axis: int) -> None:
    plain = _apply(STILL)
    always = dataclasses.replace(STILL, **{name: 1.0})  # type: ignore[arg-type]  # A float field.
    assert torch.equal(_apply(always), plain.flip(axis))
    half = dataclasses.replace(STILL, **{name: 0.5})  # type: ignore[arg-type]  # A float field.
    flipped = [not torch.equal(_apply(half, seed), plain) for seed in range(40)]
    assert 10 < sum(flipped) < 30


def test_blur_is_a_gaussian_of_a_drawn_width() -> None:
    plain = _apply(STILL)
    spec = dataclasses.replace(STILL, blur=1.0)
    widths = set()
    for seed in range(6):
        found = _apply(spec, seed)
        assert torch.equal(found[3], plain[3])
        errors = {
            sigma: np.abs(
                gaussian_filter(plain[0].numpy(), sigma, mode="mirror", radius=4) - found[0].numpy()
            ).max()
            for sigma in np.arange(0.1, 2.001, 0.01)
        }
        best = min(errors, key=lambda s: errors[s])
        assert errors[best] < 1.0
        widths.add(best)
    assert len(widths) == 6


def test_photometric_operations_change_the_image_only_and_vary() -> None:
    plain = _apply(STILL)
    results = [_apply(dataclasses.replace(STILL, photometric=1), seed) for seed in range(40)]
    assert all(torch.equal(found[3], plain[3]) for found in results)
    changed = {found.numpy().tobytes() for found in results if not torch.equal(found, plain)}
    assert len(changed) > 8  # More than there are operations: some have a random strength.
    again = _apply(dataclasses.replace(STILL, photometric=1), 3)
    assert torch.equal(again, results[3])


def test_photometric_operations_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    class Add(torch.nn.Module):
        def __init__(self, value: int) -> None:
            super().__init__()
            self.value = value

        def forward(self, *pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
            image, label = pair
            changed = image.as_subclass(torch.Tensor).to(torch.int64) + self.value
            return type(image)(changed), label

    monkeypatch.setattr(module, "_PHOTOMETRIC", (Add(1000), Add(100_000)))
    plain = _apply(STILL)
    seen = [int((_apply(dataclasses.replace(STILL, photometric=2), s) - plain)[0, 0, 0])
            for s in range(60)]  # fmt: skip
    share = {value: seen.count(value) / 60 for value in (2000, 101_000, 200_000)}
    assert sum(share.values()) == 1
    assert 0.3 < share[101_000] < 0.7
    assert min(share[2000], share[200_000]) > 0.08


def test_padding_is_the_colour_that_normalises_to_zero() -> None:
    spec = PreprocessSpec(channel_order="bgr")
    np.testing.assert_array_equal(mean_colour(spec), np.rint(np.array(spec.mean[::-1]) * 255))


def test_every_preset_is_of_a_data_set_and_makes_its_crop() -> None:
    assert set(PRESETS) <= set(DATASETS)
    for preset in {id(p): p for p in PRESETS.values()}.values():
        transform = TrainTransform(preset.augment, preset.preprocess, 5)
        for seed, size in enumerate(((60, 80), (300, 200))):
            image, label = transform(_sample(*size), seed)
            assert (*image.shape[1:],) == (*label.shape,) == preset.augment.crop
            assert set(label.flatten().tolist()) <= {0, 1, 2, 3, 4, 255}


def test_presets_hold_the_published_rules() -> None:
    voc, duts = find_preset("voc:/data"), find_preset("duts")
    assert voc.augment.base_size((400, 500)) == (520, 650)
    assert model_size((400, 500), voc.preprocess) == (520, 650)
    assert model_size((400, 500), duts.preprocess) == (320, 320)
    assert duts.augment.crop == (288, 288)
    drive = find_preset("drive").augment
    low, high = (min(drive.base_size((584, 565))) * factor for factor in drive.scale)
    assert (int(low), int(high)) == (282, 678)
    assert find_preset("ade20k").augment.base_size((400, 500)) == (416, 520)
    assert find_preset("ade20k").preprocess.size_rule is SizeRule.KEEP


def test_the_table_of_presets_is_frozen_and_an_unknown_name_is_told() -> None:
    assert isinstance(PRESETS, types.MappingProxyType)
    with pytest.raises(UnknownNameError, match="synthetic") as caught:
        find_preset("synthetic:64x96")
    assert "voc" in caught.value.hint
