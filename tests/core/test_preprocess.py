"""The NumPy reference of preprocessing against torch, Pillow and exact integer arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import (
    Kernel,
    PreprocessSpec,
    SizeRule,
    fit_image,
    model_size,
    normalize_image,
    preprocess_image,
    resize_image,
    resize_labels,
    restore_labels,
)

SIZES = [(1, 1), (2, 3), (37, 53), (64, 48), (101, 33)]
TARGETS = [(1, 1), (17, 29), (64, 48), (96, 130)]


def _image(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def _spec(rule: str, size: tuple[int, int] | None, **others: Any) -> PreprocessSpec:
    return PreprocessSpec(size_rule=SizeRule(rule), size=size, **others)


def _torch_resize(
    image: NDArray[np.uint8], first: tuple[int, int], size: tuple[int, int], **how: Any
) -> NDArray[Any]:
    """In two passes, the first to size `first`; each ends in 0..255, as in 8-bit pictures."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    half_done = F.interpolate(batch, size=first, **how).clamp(0, 255)
    resized = F.interpolate(half_done, size=size, **how).clamp(0, 255)
    return resized[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize(
    ("kernel", "antialias"),
    [(Kernel.BILINEAR, True), (Kernel.BILINEAR, False), (Kernel.BICUBIC, True)],
)
def test_resize_is_within_one_level_of_torch(
    kernel: Kernel, antialias: bool, source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = _image(source)
    found = resize_image(image, target, PreprocessSpec(kernel=kernel, antialias=antialias))
    # Which pass comes first is Pillow's choice (versions differ); bicubic's overshoot shows it.
    orders = [
        _torch_resize(
            image, first, target, mode=kernel.value, antialias=antialias, align_corners=False
        )
        for first in ((source[0], target[1]), (target[0], source[1]))
    ]
    assert found.dtype == np.uint8
    assert found.shape == (*target, 3)
    # Pillow rounds after each pass: one level, a little more under bicubic's negative lobes.
    limit = 1.01 if kernel is Kernel.BILINEAR else 1.35
    assert min(np.abs(found - expected).max() for expected in orders) <= limit


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SIZES)
def test_nearest_samples_pixel_centres_exactly(
    source: tuple[int, int], target: tuple[int, int], antialias: bool
) -> None:
    image = _image(source)
    found = resize_image(image, target, PreprocessSpec(kernel=Kernel.NEAREST, antialias=antialias))
    rows, columns = (_centres(o, n) for o, n in zip(source, target, strict=True))
    np.testing.assert_array_equal(found, image[rows][:, columns])


def _centres(old: int, new: int) -> list[int]:
    """Index of the old pixel that holds the centre of each new one, in integers only."""
    return [((2 * i + 1) * old) // (2 * new) for i in range(new)]


def test_shrinking_without_antialias_picks_points_where_antialias_averages() -> None:
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    point = resize_image(stripes, (8, 8), PreprocessSpec(antialias=False))
    area = resize_image(stripes, (8, 8), PreprocessSpec(antialias=True))
    assert point.max() == 0
    assert area.min() > 0


def test_a_constant_image_stays_constant_under_every_kernel() -> None:
    image = np.full((31, 17, 3), (3, 130, 255), np.uint8)
    for kernel, antialias in (("bilinear", False), ("bilinear", True), ("bicubic", True)):
        spec = PreprocessSpec(kernel=Kernel(kernel), antialias=antialias)
        assert (resize_image(image, (64, 40), spec) == image[0, 0]).all()


@pytest.mark.parametrize(
    ("rule", "asked", "original", "expected"),
    [
        ("keep", None, (37, 53), (37, 53)),
        ("keep", (64, 64), (37, 53), (37, 53)),
        ("fixed", (64, 96), (37, 53), (64, 96)),
        ("letterbox", (64, 96), (37, 53), (64, 96)),
        ("shorter_side", (64, 64), (37, 53), (64, 92)),
        ("shorter_side", (64, 999), (53, 37), (92, 64)),
        ("shorter_side", (64, 64), (64, 64), (64, 64)),
        ("shorter_side", (2, 2), (1, 1000), (2, 2000)),
    ],
)
def test_size_rules(
    rule: str, asked: tuple[int, int] | None, original: tuple[int, int], expected: tuple[int, int]
) -> None:
    spec = _spec(rule, asked)
    assert model_size(original, spec) == expected
    assert fit_image(_image(original), spec).shape == (*expected, 3)


@pytest.mark.parametrize("original", [*SIZES, (1, 400), (400, 1)])
def test_letterbox_keeps_the_ratio_pads_with_its_value_and_comes_back(
    original: tuple[int, int],
) -> None:
    spec = _spec("letterbox", (40, 60), pad_value=7)
    white = np.full((*original, 3), 255, np.uint8)
    fitted = fit_image(white, spec)
    inside = (fitted == 255).all(axis=2)
    height, width = int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())
    ratio = min(40 / original[0], 60 / original[1])
    assert (height, width) == tuple(max(1, round(side * ratio)) for side in original)
    assert height == 40 or width == 60
    assert inside[:height, :width].all()
    assert (fitted[~inside] == 7).all()
    labels = np.where(inside, 1, 99).astype(np.uint8)
    np.testing.assert_array_equal(
        restore_labels(labels, original, spec), np.ones(original, np.uint8)
    )


def test_enlarged_by_a_whole_factor_labels_come_back_unchanged() -> None:
    labels = np.random.default_rng(0).integers(0, 11, (30, 40), dtype=np.uint16)
    for rule, size in (("fixed", (60, 120)), ("shorter_side", (90, 90)), ("letterbox", (60, 200))):
        spec = _spec(rule, size, kernel=Kernel.NEAREST)
        picture = np.repeat(labels.astype(np.uint8)[..., None], 3, axis=2)
        at_model = fit_image(picture, spec)[..., 0].astype(np.uint16)
        np.testing.assert_array_equal(restore_labels(at_model, (30, 40), spec), labels)


@pytest.mark.parametrize("target", [*TARGETS, (360, 480), (97, 513)])
@pytest.mark.parametrize("source", [*SIZES, (520, 520)])
def test_label_resize_is_nearest_exact(source: tuple[int, int], target: tuple[int, int]) -> None:
    labels = np.random.default_rng(1).integers(0, 1000, source, dtype=np.uint16)
    found = resize_labels(labels, target)
    rows, columns = (_centres(o, n) for o, n in zip(source, target, strict=True))
    np.testing.assert_array_equal(found, labels[rows][:, columns])
    assert found.dtype == labels.dtype
    # torch computes the centre in fp32; where a centre lies on no pixel border it agrees.
    wide = torch.from_numpy(labels.astype(np.float32))[None, None]
    twin = F.interpolate(wide, size=target, mode="nearest-exact")[0, 0].numpy()
    clear = np.ix_(*(_off_border(o, n) for o, n in zip(source, target, strict=True)))
    np.testing.assert_array_equal(found[clear], twin[clear].astype(np.uint16))


def _off_border(old: int, new: int) -> list[int]:
    return [i for i in range(new) if (2 * i + 1) * old % (2 * new) != 0]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [
        (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (1.0, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (2 / 255, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_normalisation_equals_torch_bit_for_bit(
    order: str,
    scale: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    levels = np.arange(256, dtype=np.uint8)
    image = np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=-1).reshape(16, 16, 3)
    spec = PreprocessSpec(channel_order=order, scale=scale, mean=mean, std=std)
    found = normalize_image(image, spec)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    if order == "bgr":
        pixels = pixels.flip(0)
    twin = (pixels * scale - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, twin.numpy())


def test_normalisation_equals_torchvision_within_rounding() -> None:
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    from torchvision.transforms.v2 import functional as vf

    image = _image((23, 31))
    scaled = vf.to_dtype(torch.from_numpy(image).permute(2, 0, 1), torch.float32, scale=True)
    expected = vf.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalize_image(image, PreprocessSpec()), expected, atol=1e-6)


def test_the_image_contract_stops_after_the_resize() -> None:
    image, spec = _image((37, 53)), _spec("fixed", (20, 30), channel_order="bgr")
    fitted = preprocess_image(image, spec, InputKind.IMAGE)
    assert fitted.dtype == np.uint8
    assert fitted.shape == (20, 30, 3)
    assert fitted.flags.writeable
    tensor = preprocess_image(image, spec, InputKind.TENSOR)
    np.testing.assert_array_equal(normalize_image(np.asarray(fitted, np.uint8), spec), tensor)


def test_pillow_is_the_antialiased_kernel() -> None:
    image = _image((50, 70))
    expected = np.asarray(Image.fromarray(image).resize((33, 21), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_image(image, (21, 33), PreprocessSpec()), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"channel_order": "gbr"},
        {"exif": "yes"},
        {"restore": "bilinear"},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, -1.0, 0.2)},
        {"std": (0.2, float("nan"), 0.2)},
        {"mean": (float("inf"), 0.0, 0.0)},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"pad_value": 256},
        {"pad_value": -1},
        {"size_rule": SizeRule.FIXED},
        {"size_rule": SizeRule.LETTERBOX, "size": (0, 5)},
        {"size_rule": SizeRule.SHORTER_SIDE, "size": (5, -1)},
        {"kernel": Kernel.BICUBIC, "antialias": False},
    ],
)
def test_a_recipe_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Preprocessing"):
        dataclasses.replace(PreprocessSpec(), **wrong)
