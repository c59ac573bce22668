"""DropBlock: whole blocks of the deepest features vanish in training, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from segdeploy.core.errors import ConfigError
from segdeploy.train import TrainConfig
from segdeploy.zoo import create_encoder, create_model
from segdeploy.zoo.blocks.drop_block import DropBlock
from segdeploy.zoo.encoders.encoder import ChainEncoder


def test_whole_blocks_of_the_asked_share_vanish_in_training_only() -> None:
    torch.manual_seed(0)
    net = create_model("unet_resnet18", 2)
    keys = list(net.state_dict())
    drop = DropBlock(net, 0.2)
    assert list(net.state_dict()) == keys
    encoder: torch.nn.Module = net.encoder  # type: ignore[assignment]
    block = encoder.get_submodule("layer4.1")
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)  # The block then passes on its input: ones stay ones.
    ones = torch.ones(4, 512, 20, 20)
    with torch.no_grad():
        assert torch.equal(block(ones), ones)  # The share begins at none.
        drop.share = 1.0
        found = block(ones)
        dropped = (found == 0).numpy()
        assert abs(dropped.mean() - 0.2) < 0.03
        # Every dropped pixel lies in a dropped 3x3 square: opening by one changes nothing.
        opened = ndimage.binary_opening(dropped, structure=torch.ones(1, 1, 3, 3).numpy())
        assert (opened == dropped).all()
        assert found.mean() == pytest.approx(1, abs=1e-4)  # The rest is scaled up.
        assert torch.equal(block.eval()(ones), ones)


def test_early_stages_keep_every_feature() -> None:
    net = create_model("unet_resnet18", 2)
    DropBlock(net, 0.5).share = 1.0
    first = net.encoder.get_submodule("layer2.0")  # type: ignore[union-attr]
    assert not first._forward_hooks


def test_a_model_without_such_an_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_block needs an encoder"):
        DropBlock(create_model("unet", 2), 0.1)
    with pytest.raises(ConfigError, match="drop_block must be in"):
        TrainConfig(model="unet", data="synthetic", out="run", drop_block=1.0)


def test_stages_are_those_that_are_computed() -> None:
    encoder = create_encoder("resnet18", depth=3)
    assert isinstance(encoder, ChainEncoder)
    assert len(encoder.stage_modules()) == 3
