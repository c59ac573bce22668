"""How each public data set is usually trained on and evaluated: one frozen table, by its name.

VOC and DRIVE follow the rule of torchvision's segmentation reference (a shorter side), the scene
sets that of EncNet's training (a longer side), DUTS that of U2-Net, ISBI 2012 the U-Net paper, pet
the usual 256x256. DRIVE's statistics are those of its own pictures. Evaluation brings an image to
a size by `preprocess` and scores at the label's own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from segdeploy.core.errors import UnknownNameError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule
from segdeploy.data.augment import AugmentSpec


@dataclass(frozen=True)
class Preset:
    """The augmentation of training, and the preprocessing of whatever is trained so."""

    augment: AugmentSpec
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)


_VOC = Preset(
    AugmentSpec(crop=(480, 480), shorter_side=520, jitter=0.0),
    PreprocessSpec(size_rule=SizeRule.SHORTER_SIDE, size=(520, 520)),
)
_SCENES = Preset(AugmentSpec(crop=(480, 480), longer_side=520, jitter=0.0))

PRESETS: Mapping[str, Preset] = MappingProxyType({
    "ade20k": _SCENES,
    "camvid": Preset(
        AugmentSpec(crop=(320, 320), scale=(0.5, 1.5), jitter=0.3, blur=0.2, photometric=1)
    ),
    "coco": _SCENES,
    "coco_stuff": _SCENES,
    "coco_voc": _VOC,
    # At a longer side of 520 the poles and signs of these 2048x1024 pictures would be gone.
    "cityscapes": Preset(AugmentSpec(crop=(768, 768), longer_side=2048, jitter=0.0)),
    "drive": Preset(
        AugmentSpec(
            crop=(480, 480), shorter_side=565, scale=(0.5, 1.2), vertical_flip=0.5, jitter=0.0
        ),
        PreprocessSpec(mean=(0.709, 0.381, 0.224), std=(0.127, 0.079, 0.043)),
    ),
    "duts": Preset(
        AugmentSpec(crop=(288, 288), stretch=(320, 320), scale=(1.0, 1.0), jitter=0.0),
        PreprocessSpec(size_rule=SizeRule.FIXED, size=(320, 320)),
    ),
    "isbi2012": Preset(
        AugmentSpec(
            crop=(512, 512), scale=(0.9, 1.1), rotate=15.0, elastic=10.0, vertical_flip=0.5,
            jitter=0.2,
        )
    ),
    "pascal_context": _SCENES,
    "pet": Preset(
        AugmentSpec(crop=(256, 256), stretch=(256, 256), scale=(1.0, 1.0), jitter=0.0),
        PreprocessSpec(size_rule=SizeRule.FIXED, size=(256, 256)),
    ),
    "voc": _VOC,
    "voc_aug": _VOC,
})  # fmt: skip


def find_preset(data: str) -> Preset:
    """Return the preset of `name` or `name:root`.

    Raises:
        UnknownNameError: If there is none for this data set.
    """
    name = data.partition(":")[0]
    if name not in PRESETS:
        raise UnknownNameError(
            f"There is no augmentation preset for the data set '{name}'.",
            hint=f"There are presets for {', '.join(PRESETS)}; otherwise set scale, crop, jitter "
            "and the like in the recipe.",
        )
    return PRESETS[name]
