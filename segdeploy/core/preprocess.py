"""From an image to the batch a model takes, and back: the NumPy/Pillow reference.

Every other implementation (in-graph, JavaScript, C++) is tested against this one. The spec
travels from training into every artifact, so that an app cannot resize or normalise differently
without contradicting a file that it was shipped with.

Order: resize (uint8) -> channel order -> float32 x scale -> (x - mean) / std -> CHW. The graph of
an `image` contract contains everything after the resize.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.contract import InputKind, SizeBounds
from segdeploy.core.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

L = TypeVar("L", bound=np.generic)


class SizeRule(StrEnum):
    """How an image gets its model size: not at all, stretched, by shorter side, or padded."""

    KEEP = "keep"
    FIXED = "fixed"
    SHORTER_SIDE = "shorter_side"
    LETTERBOX = "letterbox"


class Kernel(StrEnum):
    """Resize kernel (half-pixel centres, as in Pillow and torch's align_corners=False)."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


_PILLOW_KERNELS = {
    Kernel.BILINEAR: Image.Resampling.BILINEAR,
    Kernel.BICUBIC: Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class PreprocessSpec:
    """The whole recipe. Defaults: keep the size, ImageNet statistics on RGB in [0, 1].

    `size` is (H, W): the exact size for `fixed` and `letterbox`; for `shorter_side` its minimum
    is the shorter side. `antialias` is Pillow's area-aware filter when shrinking; without it the
    kernel is `bilinear` or `nearest` sampled at points, as many apps do. The label map returns to
    the original size by nearest sampling (`restore_labels`), after any padding was cut off.
    """

    channel_order: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    size_rule: SizeRule = SizeRule.KEEP
    size: tuple[int, int] | None = None
    kernel: Kernel = Kernel.BILINEAR
    antialias: bool = True
    pad_value: int = 114
    exif: str = "apply"
    restore: str = "nearest"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("channel_order", self.channel_order, ("rgb", "bgr")),
            ("exif", self.exif, ("apply", "ignore")),
            ("restore", self.restore, ("nearest",)),
        ):
            if value not in known:
                raise ConfigError(f"Preprocessing: {name} is '{value}'.", hint=f"One of {known}.")
        if self.size_rule is not SizeRule.KEEP and (self.size is None or min(self.size) < 1):
            raise ConfigError(f"Preprocessing: rule {self.size_rule} needs a size (H, W).")
        if not np.isfinite([self.scale, *self.mean, *self.std]).all() or self.scale <= 0:
            raise ConfigError("Preprocessing: scale, mean, std must be finite and scale positive.")
        if min(self.std) <= 0:
            raise ConfigError(f"Preprocessing: std must be positive, found {self.std}.")
        if not 0 <= self.pad_value <= 255:
            raise ConfigError(f"Preprocessing: pad_value is {self.pad_value}, not in 0..255.")
        if not self.antialias and self.kernel is Kernel.BICUBIC:
            raise ConfigError("Preprocessing: bicubic is only defined with antialias.")


def model_size(original: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Return the (H, W) that an image of size `original` (H, W) has as a model input."""
    if spec.size is None or spec.size_rule is SizeRule.KEEP:
        return original
    if spec.size_rule is SizeRule.SHORTER_SIDE:
        ratio = min(spec.size) / min(original)
        height, width = (max(1, round(side * ratio)) for side in original)
        return height, width
    return spec.size


def _inner_size(original: tuple[int, int], spec: PreprocessSpec) -> tuple[int, int]:
    """Size (H, W) of the image itself inside the model input; smaller under letterbox."""
    height, width = model_size(original, spec)
    if spec.size_rule is not SizeRule.LETTERBOX:
        return height, width
    ratio = min(height / original[0], width / original[1])
    return max(1, round(original[0] * ratio)), max(1, round(original[1] * ratio))


def resize_image(
    image: NDArray[np.uint8], size: tuple[int, int], spec: PreprocessSpec
) -> NDArray[np.uint8]:
    """Return the uint8 image (h, w, 3) at `size` (H, W) by the spec's kernel."""
    if image.shape[:2] == size:
        return image
    if spec.kernel is Kernel.NEAREST:  # Not Pillow's: it adds up steps, and drifts off centre.
        return image[_nearest_grid(image.shape[:2], size)]
    if spec.antialias:
        picture = Image.fromarray(image)
        resized = picture.resize((size[1], size[0]), _PILLOW_KERNELS[spec.kernel])
        return np.array(resized)  # A copy that may be written to: torch warns about others.
    return _bilinear_points(image, size)


def _bilinear_points(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear without antialias, half-pixel centres, clamped borders, rounded half to even."""
    rows, row_weight = _bilinear_axis(image.shape[0], size[0])
    columns, column_weight = _bilinear_axis(image.shape[1], size[1])
    source = image.astype(np.float32)
    top, bottom = source[rows[0]], source[rows[1]]
    lines = top + (bottom - top) * row_weight[:, None, None]
    left, right = lines[:, columns[0]], lines[:, columns[1]]
    return np.rint(left + (right - left) * column_weight[None, :, None]).astype(np.uint8)


def _bilinear_axis(
    old: int, new: int
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float32]]:
    centre = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    lower = np.minimum(centre.astype(np.intp), old - 1)
    return (lower, np.minimum(lower + 1, old - 1)), (centre - lower).astype(np.float32)


def fit_image(image: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Return the uint8 RGB image at the model's size: what an `image` contract takes.

    Args:
        image: RGB of shape (h, w, 3).
        spec: Only its size rule, kernel and pad value are used here.
    """
    original = (image.shape[0], image.shape[1])
    inner = resize_image(image, _inner_size(original, spec), spec)
    size = model_size(original, spec)
    if inner.shape[:2] == size:
        return inner
    canvas = np.full((*size, image.shape[2]), spec.pad_value, dtype=np.uint8)
    canvas[: inner.shape[0], : inner.shape[1]] = inner  # Top left: restoring needs no offset.
    return canvas


def normalize_image(image: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Return float32 CHW of a uint8 RGB image (H, W, 3): the part that a graph may contain."""
    pixels = image if spec.channel_order == "rgb" else image[..., ::-1]
    scaled = pixels.astype(np.float32) * np.float32(spec.scale)
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))


def mean_colour(spec: PreprocessSpec) -> tuple[int, int, int]:
    """Return the RGB colour that normalisation takes nearest to zero, 0..255: what padding is."""
    mean = spec.mean if spec.channel_order == "rgb" else spec.mean[::-1]
    red, green, blue = (min(255, max(0, round(m / spec.scale))) for m in mean)
    return red, green, blue


def preprocess_image(
    image: NDArray[np.uint8], spec: PreprocessSpec, kind: InputKind = InputKind.TENSOR
) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Return one batch item of the contract: float32 (3, H, W), or uint8 (H, W, 3)."""
    fitted = fit_image(image, spec)
    return fitted if kind is InputKind.IMAGE else normalize_image(fitted, spec)


def resize_labels(labels: NDArray[L], size: tuple[int, int]) -> NDArray[L]:
    """Return label maps (..., h, w) at `size` (H, W), sampled at pixel centres (nearest-exact)."""
    if labels.shape[-2:] == size:
        return labels
    sampled: NDArray[L] = labels[..., *_nearest_grid(labels.shape[-2:], size)]
    return sampled


def _nearest_grid(
    old: tuple[int, ...], new: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index arrays (H, 1) and (1, W) of the old pixel that holds each new pixel's centre."""
    rows, columns = (
        (2 * np.arange(to, dtype=np.intp) + 1) * length // (2 * to)  # Integers: exact everywhere.
        for length, to in zip(old, new, strict=True)
    )
    return rows[:, None], columns[None, :]


def restore_labels(
    labels: NDArray[L], original: tuple[int, int], spec: PreprocessSpec
) -> NDArray[L]:
    """Return model-sized label maps (..., H, W) at the original image's size (h, w)."""
    height, width = _inner_size(original, spec)
    return resize_labels(labels[..., :height, :width], original)


def fixed_preprocess(
    spec: PreprocessSpec, size: tuple[int, int] | None, bounds: SizeBounds | None = None
) -> PreprocessSpec:
    """Return the preprocessing of an artifact that takes one size, or sizes within bounds.

    One size has to be brought about: letterbox stays letterbox, every other rule becomes `fixed`,
    with the same kernel. A range changes only a fixed size that is outside it, to its usual one.
    """
    if size is None and bounds is not None and spec.size is not None:
        size = None if bounds.has(1, *spec.size) else bounds.usual
    if size is None or (spec.size_rule is SizeRule.FIXED and spec.size == size):
        return spec
    rule = SizeRule.LETTERBOX if spec.size_rule is SizeRule.LETTERBOX else SizeRule.FIXED
    return dataclasses.replace(spec, size_rule=rule, size=size)
