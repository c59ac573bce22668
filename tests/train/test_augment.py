"""What a recipe says of augmentation reaches the transform, the checkpoint and the next run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, model_size
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.presets import find_preset
from segdeploy.train import TrainConfig, train
from segdeploy.train.augment import plan_augmentation
from segdeploy.train.config import AUGMENT_SETTINGS, config_toml, load_config

BASE = TrainConfig(model="lraspp_mobilenet_v3_small", data="voc:/data", out="run")


def _config(**changes: Any) -> TrainConfig:
    return dataclasses.replace(BASE, **changes)


def test_the_default_recipe_augments_as_ever() -> None:
    plan = plan_augmentation(BASE, (64, 96))
    assert plan.augment == AugmentSpec(
        crop=(64, 96), scale=(0.5, 2.0), flip=0.5, jitter=0.3, hue=0.0
    )
    assert plan.preprocess == PreprocessSpec()


def test_every_setting_reaches_the_augmentation() -> None:
    changes: dict[str, Any] = {
        "scale": (0.7, 1.1), "flip": 0.1, "jitter": 0.2, "hue": 0.05, "longer_side": 200,
        "rotate": 12.0, "elastic": 3.0, "grid": 0.2, "vertical_flip": 0.3, "blur": 0.4,
        "photometric": 2,
    }  # fmt: skip
    assert {*changes, "shorter_side", "stretch"} == set(AUGMENT_SETTINGS)
    plan = plan_augmentation(_config(**changes), (64, 96))
    assert {name: getattr(plan.augment, name) for name in changes} == changes
    stretched = plan_augmentation(_config(stretch=(50, 60), crop=(40, 40)), (64, 96)).augment
    assert (stretched.stretch, stretched.crop) == ((50, 60), (40, 40))
    assert plan_augmentation(_config(shorter_side=50), (64, 96)).augment.shorter_side == 50


@pytest.mark.parametrize(
    ("settings", "original", "expected"),
    [
        ({"stretch": (50, 60)}, (64, 96), (50, 60)),
        ({"shorter_side": 48}, (64, 96), (48, 72)),
        ({"longer_side": 48}, (64, 96), (64, 96)),
        ({}, (64, 96), (64, 96)),
    ],
)
def test_a_model_is_deployed_at_the_base_size_of_its_training(
    settings: dict[str, Any], original: tuple[int, int], expected: tuple[int, int]
) -> None:
    plan = plan_augmentation(_config(**settings, crop=(40, 40)), original)
    assert model_size(original, plan.preprocess) == expected


def test_none_is_a_crop_and_no_more() -> None:
    plan = plan_augmentation(_config(augment="none", crop=(40, 40)), (64, 96))
    assert plan.augment == AugmentSpec((40, 40), scale=(1.0, 1.0), flip=0.0, jitter=0.0)


def test_a_preset_is_of_the_data_set_and_its_crop_may_be_another() -> None:
    plan = plan_augmentation(_config(augment="preset"), (64, 96))
    assert plan == find_preset("voc")
    other = plan_augmentation(_config(augment="preset", crop=(320, 320)), (64, 96))
    assert other.augment == dataclasses.replace(plan.augment, crop=(320, 320))
    assert other.preprocess == plan.preprocess
    with pytest.raises(UnknownNameError, match="synthetic"):
        plan_augmentation(_config(augment="preset", data="synthetic"), (64, 96))


@pytest.mark.parametrize("augment", ["preset", "none"])
def test_a_setting_that_would_not_count_is_refused(augment: Any) -> None:
    with pytest.raises(ConfigError, match=r"decides scale, rotate itself"):
        _config(augment=augment, scale=(0.7, 1.0), rotate=5.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rotate": -1.0}, "rotate"), ({"rotate": 200.0}, "rotate"), ({"elastic": -1.0}, "elastic"),
     ({"grid": 0.6}, "grid"), ({"blur": 1.1}, "blur"), ({"vertical_flip": 2.0}, "vertical_flip"),
     ({"photometric": -1}, "photometric"), ({"shorter_side": 8}, "shorter_side"),
     ({"stretch": (64, 100_000)}, "stretch"), ({"longer_side": 0}, "longer_side"),
     ({"shorter_side": 64, "longer_side": 80}, "shorter_side and longer_side"),
     ({"elastic": float("nan")}, "elastic")],
)  # fmt: skip
def test_a_strength_out_of_range_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _config(**changes)


def test_a_recipe_with_augmentation_reads_back(tmp_path: Path) -> None:
    config = _config(stretch=(50, 60), rotate=10.0, photometric=2, blur=0.25)
    (tmp_path / "train.toml").write_bytes(config_toml(config))
    assert load_config(tmp_path / "train.toml", {}) == config
    with pytest.raises(ConfigError, match="augment"):
        load_config(None, {"model": "m", "data": "d", "out": "o", "augment": "much"})


def _write_duts(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("TR", "TE"):
        for kind in ("Image", "Mask"):
            (root / f"DUTS-{part}" / f"DUTS-{part}-{kind}").mkdir(parents=True)
        for number in range(4):
            folder, mask = root / f"DUTS-{part}", np.zeros((50, 70), np.uint8)
            mask[10:30, 20:50] = 255
            image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
            image.save(folder / f"DUTS-{part}-Image" / f"{number}.jpg")
            Image.fromarray(mask).save(folder / f"DUTS-{part}-Mask" / f"{number}.png")


def test_a_preset_trains_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    _write_duts(tmp_path / "data")
    config = _config(
        data=f"duts:{tmp_path / 'data'}", out=str(tmp_path / "run"), augment="preset",
        crop=(64, 64), epochs=1, batch_size=2, workers=0, device="cpu",
    )  # fmt: skip
    checkpoint = train(config)
    preprocess = checkpoint.manifest.preprocess
    assert (preprocess.size_rule, preprocess.size) == (SizeRule.FIXED, (320, 320))
    assert checkpoint.manifest.design_size == (320, 320)
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert 0 <= json.loads(line)["mean_iou"] <= 1
