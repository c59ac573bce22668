"""Training transforms of image and label together, on torchvision.transforms.v2.

Randomness depends on (seed, epoch, sample) only: each sample seeds its own generator state, so
the order of workers, the number of processes and a resumed run change nothing.

Order: random size -> rotation and deformation -> pad (image: mean colour, label: ignore) -> random
crop -> flips -> colour, blur, photometric operations -> normalise (`data.augment` says how much).
Images are resized bilinear with antialias, labels nearest. A step that is off draws no number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from segdeploy.core.preprocess import PreprocessSpec, mean_colour
from segdeploy.core.task import ignore_value
from segdeploy.data import warp
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.sample import Dataset, Sample
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as vf  # noqa: E402

_Pair = tuple[tv_tensors.Image, tv_tensors.Mask]

_BLUR_KERNEL, _BLUR_SIGMA = 9, (0.1, 2.0)
_PHOTOMETRIC = (
    v2.RandomAutocontrast(p=1),
    v2.RandomEqualize(p=1),
    v2.RandomPosterize(bits=4, p=1),
    v2.RandomSolarize(threshold=192, p=1),
    v2.RandomAdjustSharpness(sharpness_factor=2, p=1),
    v2.ColorJitter(brightness=0.5),
    v2.ColorJitter(contrast=0.5),
    v2.ColorJitter(saturation=0.5),
)


class TrainTransform:
    """Callable (Sample, generator seed) -> (image float32 (3, h, w), label).

    The label is int64 (h, w); of a multilabel task, whose masks are many, uint8 (K, h, w).
    """

    def __init__(self, augment: AugmentSpec, preprocess: PreprocessSpec, num_classes: int) -> None:
        self.augment = augment
        self.preprocess = preprocess
        self._colour, self._ignored = list(mean_colour(preprocess)), ignore_value(num_classes)
        self._rest = v2.Compose([*_flips(augment), *_colour_changes(augment)])

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Return the augmented pair; the same seed gives the same pair."""
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        image = tv_tensors.Image(pixels)
        is_map = sample.label.ndim == 2
        ids = sample.label[None].astype(np.int64) if is_map else sample.label.copy()
        mask = tv_tensors.Mask(torch.from_numpy(ids))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset CUDA's too.
            image, mask = self._resize(image, mask)
            image, mask = self._warp(image, mask)
            image, mask = self._crop(image, mask)
            image, mask = self._rest(image, mask)
        label = mask.as_subclass(Tensor)
        return self._normalize(image.as_subclass(Tensor)), label[0] if is_map else label

    def _resize(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> _Pair:
        low, high = self.augment.scale
        factor = float(torch.empty(()).uniform_(low, high))
        base = self.augment.base_size((image.shape[-2], image.shape[-1]))
        size = [max(1, round(side * factor)) for side in base]
        image = vf.resize(image, size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
        # As an image of ids: before torchvision 0.28 a Mask ignored nearest-exact without a word,
        # which shifts labels by half a pixel against the image.
        ids = mask.as_subclass(Tensor)
        ids = vf.resize_image(ids, size, interpolation=v2.InterpolationMode.NEAREST_EXACT)
        return image, tv_tensors.Mask(ids)

    def _warp(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> _Pair:
        where = warp.draw_coordinates(self.augment, (image.shape[-2], image.shape[-1]))
        if where is None:
            return image, mask
        pixels, ids = image.as_subclass(Tensor), mask.as_subclass(Tensor)
        pixels = warp.sample(pixels, where, torch.tensor(self._colour), "bilinear")
        ids = warp.sample(ids, where, torch.full((len(ids),), self._ignored), "nearest")
        return tv_tensors.Image(pixels), tv_tensors.Mask(ids)

    def _crop(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> _Pair:
        crop = v2.RandomCrop(self.augment.crop, pad_if_needed=False)
        height, width = image.shape[-2:]
        pad = [0, 0, max(0, crop.size[1] - width), max(0, crop.size[0] - height)]
        if any(pad):
            image = vf.pad(image, pad, fill=self._colour)
            mask = vf.pad(mask, pad, fill=self._ignored)
        cropped: _Pair = crop(image, mask)
        return cropped

    def _normalize(self, image: Tensor) -> Tensor:
        """The tensor twin of `core.preprocess.normalize_image`."""
        spec = self.preprocess
        if spec.channel_order == "bgr":
            image = image.flip(0)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        return (image.float() * spec.scale - mean[:, None, None]) / std[:, None, None]


def _flips(spec: AugmentSpec) -> list[v2.Transform]:
    steps = [v2.RandomHorizontalFlip(spec.flip)]
    return [*steps, v2.RandomVerticalFlip(spec.vertical_flip)] if spec.vertical_flip else steps


def _colour_changes(spec: AugmentSpec) -> list[v2.Transform]:
    """Return steps that change the image only: torchvision leaves a Mask alone in all of them."""
    steps: list[v2.Transform] = []
    if spec.jitter or spec.hue:
        steps.append(v2.ColorJitter(spec.jitter, spec.jitter, spec.jitter, spec.hue))
    if spec.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(_BLUR_KERNEL, _BLUR_SIGMA)], spec.blur))
    return steps + [v2.RandomChoice(list(_PHOTOMETRIC)) for _ in range(spec.photometric)]


class TrainingView(TorchDataset[tuple[Tensor, Tensor]]):
    """A data set as a loader wants it: item i of one epoch, augmented."""

    def __init__(self, samples: Dataset, transform: TrainTransform, seed: int, epoch: int) -> None:
        self.samples, self.transform, self.seed, self.epoch = samples, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the augmented sample `index`."""
        seed = sample_seed(self.seed, self.epoch, index)
        return self.transform(self.samples[index], seed)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return a 63-bit seed from (seed, epoch, index) without visible patterns."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


__all__ = ["AugmentSpec", "TrainTransform", "TrainingView", "sample_seed"]
