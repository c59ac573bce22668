"""Schedule, batches, average and configuration: the parts of a recipe."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segdeploy.core.errors import ConfigError
from segdeploy.data import open_dataset
from segdeploy.train.batches import epoch_batches
from segdeploy.train.class_weights import class_weights
from segdeploy.train.config import TrainConfig, config_toml, load_config
from segdeploy.train.ema import Average


def test_batches_cover_every_sample_once_and_differ_by_epoch() -> None:
    first, second = epoch_batches(24, 4, 0, 0), epoch_batches(24, 4, 0, 1)
    assert sorted(chain.from_iterable(first)) == list(range(24))
    assert first != second
    assert first == epoch_batches(24, 4, 0, 0)
    shares = [list(chain.from_iterable(batch[rank::2] for batch in first)) for rank in (0, 1)]
    assert sorted(chain(*shares)) == list(range(24))


def test_an_incomplete_last_batch_is_dropped_and_too_few_samples_are_refused() -> None:
    assert [len(b) for b in epoch_batches(10, 4, 0, 0)] == [4, 4]
    with pytest.raises(ConfigError, match="fewer than the batch size"):
        epoch_batches(3, 4, 0, 0)


def test_average_equals_a_slow_loop_over_weights_and_buffers() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), norm)
    average = Average(module, 0.9)
    slow = {k: v.clone().double() for k, v in module.state_dict().items()}
    for step in range(30):
        for parameter in module.parameters():
            parameter.data += torch.randn_like(parameter)
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean += 1
        norm.num_batches_tracked += 1
        average.update(module)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            slow[key] = decay * slow[key] + (1 - decay) * value.double()
    slow["1.num_batches_tracked"] = module.state_dict()["1.num_batches_tracked"].double()
    for key, value in average.state.items():
        torch.testing.assert_close(value.double(), slow[key], rtol=1e-4, atol=1e-5)


def test_class_weights_are_the_root_of_median_frequency_balancing() -> None:
    data = open_dataset("synthetic:64x64:12", "train")
    counts = np.zeros(5)
    for index in range(len(data)):
        for value in range(5):
            counts[value] += (data[index].label == value).sum()
    share = counts / counts.sum()
    np.testing.assert_allclose(class_weights(data), np.sqrt(np.median(share) / share))


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('model = "unet"\ndata = "synthetic"\nepochs = 3\nlr = 0.5\n')
    config = load_config(recipe, {"out": "run", "lr": 0.1, "seed": None})
    assert (config.epochs, config.lr, config.seed) == (3, 0.1, 0)


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    config = TrainConfig(
        model="unet", data='folder:a"b\\c', out="run", crop=(64, 96), note="é\n",
        loss="0.5*focal(gamma=3)+dice", schedule="step", step_epochs=(2, 3),
    )  # fmt: skip
    recipe = tmp_path / "train.toml"
    recipe.write_bytes(config_toml(config))
    assert load_config(recipe, {}) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", "Did you mean epochs"),
        ("epochs = 0", "at least 1"),
        ('epochs = "many"', "epochs"),
        ("lr = -1.0", "positive"),
        ("scale = [2.0, 1.0]", "scale"),
        ('amp = "int4"', "amp"),
        ("batch_size = 3\nnproc = 2", "divisible"),
        ("batch_size = 4\nnproc = 2\naccumulate = 4", "must divide a process's 2 images"),
        ("clip_norm = -1.0", "clip_norm must not be negative"),
        ("patience = -1", "patience must not be negative"),
        ("head_lr_factor = 0.0", "head_lr_factor must be positive"),
        ('schedule = "linear"', "schedule"),
        ('schedule = "step"', "needs step_epochs"),
        ('schedule = "step"\nstep_epochs = [0, 4]', "each above 0"),
        ('loss = "dice+"', "cannot be read"),
        ("ema_decay = 1.0", "ema_decay"),
        (f"epochs = {10**400}", "epochs must be finite"),
        (f"log_every = {2**63}", "log_every must be finite"),
        ("patience = nan", "patience"),
        ("lr = nan", "lr must be finite"),
        ("lr = 1e300", "lr must be finite"),
        ("head_lr_factor = 1e30", "head_lr_factor must be in 0..1e+06"),
        (
            'schedule = "step"\nstep_epochs = [1, 1]\nstep_factor = 1e20',
            "step_factor must be in 0..1",
        ),
        ("epochs = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_a_config_error_that_says_where(
    tmp_path: Path, line: str, message: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'model = "unet"\ndata = "synthetic"\nout = "run"\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, {})
    assert message in str(caught.value)


def test_bytes_of_a_command_line_that_are_no_text_are_refused() -> None:
    """Python reads them as lone surrogates, which no recipe file can hold."""
    with pytest.raises(ConfigError, match="note must be UTF-8 text"):
        load_config(None, {"model": "unet", "data": "synthetic", "out": "run", "note": "\udcff"})
