"""The augmentation and preprocessing that a recipe means."""

from __future__ import annotations

import dataclasses

from segdeploy.core.preprocess import PreprocessSpec, SizeRule
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.presets import Preset, find_preset
from segdeploy.train.config import AUGMENT_SETTINGS, TrainConfig


def plan_augmentation(config: TrainConfig, size: tuple[int, int]) -> Preset:
    """Return how samples are changed and prepared; `size` (H, W) is the crop if none is given.

    A recipe that stretches its images, or sets their shorter side, has the model evaluated and
    deployed at that size; a longer side only scales the training crops, as in EncNet's training.

    Raises:
        UnknownNameError: If the data set has no preset, and one is asked for.
    """
    if config.augment == "preset":
        found = find_preset(config.data)
        crop = config.crop or found.augment.crop
        return dataclasses.replace(found, augment=dataclasses.replace(found.augment, crop=crop))
    crop = config.crop or size
    if config.augment == "none":
        return Preset(AugmentSpec(crop, scale=(1.0, 1.0), flip=0.0, jitter=0.0), PreprocessSpec())
    settings = {name: getattr(config, name) for name in AUGMENT_SETTINGS}
    augment = AugmentSpec(crop, **settings)
    return Preset(augment, _preprocessing(augment))


def _preprocessing(augment: AugmentSpec) -> PreprocessSpec:
    """Return the preprocessing that brings an image to the base size of the augmentation."""
    if augment.stretch is not None:
        return PreprocessSpec(size_rule=SizeRule.FIXED, size=augment.stretch)
    if augment.shorter_side is not None:
        side = augment.shorter_side
        return PreprocessSpec(size_rule=SizeRule.SHORTER_SIDE, size=(side, side))
    return PreprocessSpec()
