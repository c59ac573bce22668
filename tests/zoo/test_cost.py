"""Costs against torchvision's published figures, and against a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model
from segdeploy.zoo.cost import measure_cost, model_cost
from segdeploy.zoo.shapes import create_shapes

prepare_torchvision()
from torchvision.models import get_model_weights  # noqa: E402


@pytest.mark.parametrize(
    "name",
    ["deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"],
)
def test_parameters_and_multiply_adds_are_torchvisions(name: str) -> None:
    meta = get_model_weights(name).DEFAULT.meta
    total = model_cost(name, 21, (520, 520)).total
    assert total.num_parameters == meta["num_params"]
    # Theirs runs the auxiliary head in evaluation too: FCN's is 6.5 % of all, DeepLabV3's 0.1 %.
    auxiliary = 10.0 if name == "fcn_resnet50" else 0.02
    assert total.macs / 1e9 == pytest.approx(meta["_ops"], abs=auxiliary)
    assert total.macs / 1e9 <= meta["_ops"] + 0.001


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(4, 5, 1)
        self.aux = nn.Conv2d(4, 5, 1)  # Not run in evaluation.

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x))
        return logits


def test_blocks_are_counted_as_by_hand() -> None:
    cost = measure_cost(_Small(), (32, 64))
    blocks = {block.name: block for block in cost.blocks}
    assert list(blocks) == ["encoder", "encoder.0", "encoder.1", "head", "aux"]
    pixels = 16 * 32
    conv, head = pixels * 4 * 27, pixels * 5 * 4
    assert {name: block.macs for name, block in blocks.items()} == {
        "encoder": conv, "encoder.0": conv, "encoder.1": 0, "head": head, "aux": 0,
    }  # fmt: skip
    assert [b.num_parameters for b in cost.blocks] == [112, 112, 0, 25, 25]
    assert [b.activation_mib * 2**20 for b in cost.blocks] == [
        pixels * 16, pixels * 16, 0, pixels * 20, 0,
    ]  # fmt: skip
    assert (cost.total.macs, cost.total.num_parameters) == (conv + head, 162)
    assert cost.total.activation_mib * 2**20 == pixels * 36


def test_attention_counts_its_two_products() -> None:
    class Attends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key = x.new_zeros(1, 4, 10, 8), x.new_zeros(1, 4, 25, 8)
            return nn.functional.scaled_dot_product_attention(query, key, key)

    assert measure_cost(Attends(), (32, 32)).total.macs == 2 * 4 * 10 * 25 * 8


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_small", "unet_resnet18"])
def test_fake_tensors_cost_what_real_ones_do(name: str) -> None:
    module = create_model(name, 3)
    hooks = [dict(part._forward_hooks) for part in module.modules()]
    assert measure_cost(create_shapes(name, 3), (64, 96)) == measure_cost(module, (64, 96))
    assert [dict(part._forward_hooks) for part in module.modules()] == hooks


def test_a_size_that_cannot_be_run_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="cannot run at 1x1"):
        measure_cost(nn.Conv2d(3, 1, 5), (1, 1))
