"""Training transforms of image and label together, on torchvision.transforms.v2.

Randomness depends on (seed, epoch, sample) only: each sample seeds its own generator state, so
the order of workers, the number of processes and a resumed run change nothing.

Order: random scale -> pad (image: mean colour, label: ignore) -> random crop -> flip -> colour
jitter -> normalise. Images are resized bilinear with antialias, labels nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import ignore_value
from segdeploy.data.sample import Dataset, Sample
from segdeploy.frameworks.torchvision import prepare_torchvision

prepare_torchvision()
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as vf  # noqa: E402


@dataclass(frozen=True)
class AugmentSpec:
    """What training does to a sample.

    `crop` is (H, W) in pixels after scaling by a factor drawn from `scale`; `jitter` is the
    strength of brightness, contrast and saturation changes, `hue` of hue changes.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.3
    hue: float = 0.0


class TrainTransform:
    """Callable (Sample, generator seed) -> (image float32 (3, h, w), label int64 (h, w))."""

    def __init__(self, augment: AugmentSpec, preprocess: PreprocessSpec, num_classes: int) -> None:
        self.augment = augment
        self.preprocess = preprocess
        ignored = ignore_value(num_classes)
        self._fill = {
            tv_tensors.Image: _mean_colour(preprocess),
            tv_tensors.Mask: ignored,
        }
        strength = augment.jitter
        steps = [v2.RandomHorizontalFlip(augment.flip)]
        if strength or augment.hue:
            steps.append(v2.ColorJitter(strength, strength, strength, augment.hue))
        self._rest = v2.Compose(steps)

    def __call__(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Return the augmented pair; the same seed gives the same pair."""
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        image = tv_tensors.Image(pixels)
        mask = tv_tensors.Mask(torch.from_numpy(sample.label.astype(np.int64)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset CUDA's too.
            image, mask = self._scale_and_crop(image, mask)
            image, mask = self._rest(image, mask)
        return self._normalize(image.as_subclass(Tensor)), mask.as_subclass(Tensor)

    def _scale_and_crop(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        low, high = self.augment.scale
        factor = float(torch.empty(()).uniform_(low, high))
        height, width = image.shape[-2:]
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        image = vf.resize(image, size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
        # As an image of ids: before torchvision 0.28 a Mask ignored nearest-exact without a word,
        # which shifts labels by half a pixel against the image.
        ids = mask.as_subclass(Tensor)[None]
        ids = vf.resize_image(ids, size, interpolation=v2.InterpolationMode.NEAREST_EXACT)
        mask = tv_tensors.Mask(ids[0])
        crop = v2.RandomCrop(self.augment.crop, pad_if_needed=False)
        pad = [0, 0, max(0, crop.size[1] - size[1]), max(0, crop.size[0] - size[0])]
        if any(pad):
            image = vf.pad(image, pad, fill=self._fill[tv_tensors.Image])
            mask = vf.pad(mask, pad, fill=self._fill[tv_tensors.Mask])
        cropped: tuple[tv_tensors.Image, tv_tensors.Mask] = crop(image, mask)
        return cropped

    def _normalize(self, image: Tensor) -> Tensor:
        """The tensor twin of `core.preprocess.normalize_image`."""
        spec = self.preprocess
        if spec.channel_order == "bgr":
            image = image.flip(0)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        return (image.float() * spec.scale - mean[:, None, None]) / std[:, None, None]


def _mean_colour(spec: PreprocessSpec) -> list[int]:
    """The RGB colour that normalisation takes nearest to zero, 0..255 per channel."""
    mean = spec.mean if spec.channel_order == "rgb" else spec.mean[::-1]
    return [min(255, max(0, round(m / spec.scale))) for m in mean]


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
