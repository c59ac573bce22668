"""Models of the zoo against torchvision's own, and against the published parameter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import MODELS, create_model, main_logits
from segdeploy.zoo.checkpoint import num_parameters
from segdeploy.zoo.outputs import split_outputs

prepare_torchvision()
from torchvision import models  # noqa: E402
from torchvision.models import segmentation  # noqa: E402
from torchvision.models._utils import IntermediateLayerGetter  # noqa: E402

# WZMIAOMIAO/deep-learning-for-image-processing at 2ecf2eea, computed from its source; the first two
# also by torchvision's documentation of its weights.
COUNTS = [
    ("deeplabv3_mobilenet_v3_large", 21, 11_029_328),
    ("lraspp_mobilenet_v3_large", 21, 3_221_538),
    ("unet", 2, 4_318_434),
    ("unet_transposed", 2, 7_763_074),
    ("unet_base64", 2, 17_263_042),
]


@pytest.mark.parametrize(("name", "classes", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, expected: int) -> None:
    assert num_parameters(create_model(name, classes)) == expected


def _torchvision_small(classes: int) -> nn.Module:
    """LRASPP on MobileNetV3-Small, assembled from torchvision's parts by its own recipe."""
    features = models.mobilenet_v3_small(weights=None, dilated=True).features
    strided = [i for i, b in enumerate(features) if getattr(b, "_is_cn", False)]
    low, high = [0, *strided, len(features) - 1][-4], len(features) - 1
    body = IntermediateLayerGetter(features, {str(low): "low", str(high): "high"})
    channels = features[low].out_channels, features[high].out_channels
    net: nn.Module = segmentation.LRASPP(body, *channels, classes)
    return net


def _reference(name: str, classes: int) -> nn.Module:
    net: nn.Module
    if name == "lraspp_mobilenet_v3_large":
        net = segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes
        )
    elif name == "deeplabv3_mobilenet_v3_large":
        net = segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
        )
    else:
        net = _torchvision_small(classes)
    return net


def _structured(net: nn.Module) -> None:
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


FROM_TORCHVISION = [
    "lraspp_mobilenet_v3_large",
    "lraspp_mobilenet_v3_small",
    "deeplabv3_mobilenet_v3_large",
]


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_keys_shapes_and_logits_equal_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    reference, ours = _reference(name, 7).eval(), create_model(name, 7).eval()
    _structured(reference)
    state = reference.state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    for size in ((64, 96), (97, 51), (33, 32)):
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected, found = reference(image)["out"], main_logits(ours(image))
        assert found.shape == (1, 7, *size)
        assert _relative(found, expected) <= 1e-5


def test_the_auxiliary_head_equals_torchvisions_and_runs_in_training_only() -> None:
    name = "deeplabv3_mobilenet_v3_large"
    reference, ours = _reference(name, 4), create_model(name, 4)
    _structured(reference)
    ours.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, 65, 47, generator=torch.Generator().manual_seed(0))
    for net in (reference, ours):
        net.train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    expected, found = reference(image), ours(image)
    assert list(found) == ["out", "aux"]
    for key in found:
        assert _relative(found[key], expected[key]) <= 1e-5
    assert list(ours.eval()(image)) == ["out"]


def _unet_by_hand(net: Any, x: Tensor) -> Tensor:
    """The paper's figure 1 in plain functions over the weights of `net`."""
    functional = nn.functional

    def block(convs: Any, t: Tensor) -> Tensor:
        for conv, norm in ((convs[0], convs[1]), (convs[3], convs[4])):
            t = functional.conv2d(t, conv.weight, conv.bias, padding=1)
            t = (t - norm.running_mean[:, None, None]) / torch.sqrt(
                norm.running_var[:, None, None] + norm.eps
            )
            t = (t * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        return t

    skips = [block(net.in_conv, x)]
    for down in (net.down1, net.down2, net.down3, net.down4):
        skips.append(block(down[1], functional.max_pool2d(skips[-1], 2)))
    t = skips.pop()
    for up in (net.up1, net.up2, net.up3, net.up4):
        skip = skips.pop()
        if isinstance(up.up, nn.Upsample):
            size = [2 * side for side in t.shape[-2:]]
            t = functional.interpolate(t, size, mode="bilinear", align_corners=True)
        else:
            t = functional.conv_transpose2d(t, up.up.weight, up.up.bias, stride=2)
        padded = t.new_zeros(*t.shape[:2], *skip.shape[-2:])
        padded[..., : t.shape[-2], : t.shape[-1]] = t
        t = block(up.conv, torch.cat([skip, padded], 1))
    return functional.conv2d(t, net.out_conv.weight, net.out_conv.bias)


@pytest.mark.parametrize("name", ["unet", "unet_transposed"])
def test_unet_computes_what_the_paper_draws(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 3).eval()
    _structured(net)
    for size in ((48, 32), (53, 39)):
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected = _unet_by_hand(net, image)
            assert _relative(main_logits(net(image)), expected) <= 1e-5


@pytest.mark.parametrize("classes", [0, -1, 65_536, 10**12])
def test_an_impossible_class_count_is_a_config_error(classes: int) -> None:
    with pytest.raises(ConfigError, match=str(classes)):
        create_model("unet", classes)


@pytest.mark.parametrize("name", ["unet", "fcn_resnet50", "dpt_timm/test_vit"])
def test_an_impossible_channel_count_is_a_config_error(name: str) -> None:
    for channels in (0, -1):
        with pytest.raises(ConfigError, match=rf"input channel.* {channels}"):
            create_model(name, 2, in_channels=channels)


@pytest.mark.parametrize("name", ["", "resnet", "lraspp", "LRASPP_mobilenet_v3_large", "unet "])
def test_an_unknown_model_answers_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="Unknown model") as caught:
        create_model(name, 2)
    assert "segdeploy list models" in caught.value.hint


def test_an_unknown_encoder_is_told_once() -> None:
    with pytest.raises(UnknownNameError, match="Unknown model 'unet_resnet35'") as caught:
        create_model("unet_resnet35", 2)
    assert str(caught.value).count("segdeploy list encoders") == 1


def test_outputs_of_any_form_have_main_logits() -> None:
    out, aux = torch.zeros(1), torch.ones(1)
    for output in ({"out": out, "aux": aux}, {"aux": aux, "out": out}, (out, aux), [out, aux]):
        main, others = split_outputs(output)
        assert main is out
        assert others == [aux]
    assert main_logits(out) is out
    assert split_outputs({"out": out}) == (out, [])


def test_every_spec_carries_its_own_name_and_source() -> None:
    for name in MODELS:
        spec = MODELS.get(name)
        assert spec.name == name
        assert spec.source.startswith(("arXiv:", "doi:"))
