"""The UNets on classifier features, against torchvision's features and a decoder in functions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model, main_logits

prepare_torchvision()
from torchvision.models import get_model  # noqa: E402

TAPS = {"mobilenet_v3_large": (1, 3, 6, 12, 15), "vgg16_bn": (5, 12, 22, 32, 42)}


def randomise(net: nn.Module) -> None:
    """Norms that do something, so that a wrong layer order would show."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)


def torchvision_maps(encoder: str, state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """The maps of torchvision's own features with the weights under `backbone.`."""
    with torch.device("meta"):
        features = get_model(encoder, weights=None).features[: TAPS[encoder][-1] + 1]
    part = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    features.load_state_dict(part, assign=True)
    features.eval()
    maps = []
    for i, block in enumerate(features):
        x = block(x)
        if i in TAPS[encoder]:
            maps.append(x.clone())  # The next block may begin with an in-place ReLU.
    return maps


def decode(state: Mapping[str, Tensor], maps: list[Tensor]) -> Tensor:
    """Four times: twice the size, at the top left of the skip's size, both through two blocks."""
    x = maps.pop()
    for name in ("up1", "up2", "up3", "up4"):
        skip = maps.pop()
        x = F.interpolate(
            x, [2 * side for side in x.shape[2:]], mode="bilinear", align_corners=True
        )
        fitted = torch.zeros(*x.shape[:2], *skip.shape[2:])
        x = x[..., : skip.shape[2], : skip.shape[3]]
        fitted[..., : x.shape[2], : x.shape[3]] = x
        x = torch.cat((skip, fitted), 1)
        for conv in (0, 3):
            x = F.conv2d(x, state[f"{name}.conv.{conv}.weight"], padding=1)
            mean, var, weight, bias = (
                state[f"{name}.conv.{conv + 1}.{part}"][:, None, None]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    return F.conv2d(x, state["conv.0.weight"], state["conv.0.bias"])


@pytest.mark.parametrize("encoder", TAPS)
def test_logits_equal_torchvisions_features_and_the_decoder(encoder: str) -> None:
    torch.manual_seed(0)
    net = create_model(f"unet_{encoder}", 3).eval()
    randomise(net)
    state = net.state_dict()
    for size in ((64, 32), (53, 39), (33, 65)):
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            logits = decode(state, torchvision_maps(encoder, state, image))
            expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            found = main_logits(net(image))
        assert found.shape == (1, 3, *size)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("encoder", TAPS)
def test_nothing_is_frozen_and_the_input_may_have_four_channels(encoder: str) -> None:
    net = create_model(f"unet_{encoder}", 2, in_channels=4).eval()
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.inference_mode():
        assert main_logits(net(torch.zeros(1, 4, 33, 47))).shape == (1, 2, 33, 47)
