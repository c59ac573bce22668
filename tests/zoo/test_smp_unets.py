"""U-Net, U-Net++, MA-Net, LinkNet and FPN against segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model, main_logits
from segdeploy.zoo.architectures import u_shape
from segdeploy.zoo.architectures.linknet import Double
from segdeploy.zoo.architectures.u_shape import UpChain, create_pyramid
from segdeploy.zoo.encoders.encoder import Encoder

prepare_torchvision()
smp: Any = pytest.importorskip("segmentation_models_pytorch", reason="not in the dev environment")

REFERENCES: dict[str, Callable[..., nn.Module]] = {
    "fpn": smp.FPN,
    "linknet": smp.Linknet,
    "manet": smp.MAnet,
    "unet": smp.Unet,
    "unet_scse": partial(smp.Unet, decoder_attention_type="scse"),
    "unetplusplus": smp.UnetPlusPlus,
}
NEED_STRIDE_2 = ("linknet", "unetplusplus")
PAIRS = [
    *((name, encoder) for name in REFERENCES for encoder in ("resnet34", "mobilenet_v2")),
    *((name, "mit_b0") for name in REFERENCES if name not in NEED_STRIDE_2),
    ("unet_scse", "vgg16_bn"),
    ("unet_smp", "vgg16_bn"),  # `unet_vgg16_bn` is another net.
    ("unetplusplus", "vgg16_bn"),
]


def _pair(name: str, encoder: str) -> tuple[nn.Module, nn.Module]:
    """The reference with norms that do something, and ours with its weights."""
    torch.manual_seed(0)
    reference = REFERENCES[name.removesuffix("_smp")](encoder, encoder_weights=None, classes=5)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.2)
    ours = create_model(f"{name}_{encoder}", 5)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_weights_load_unchanged_and_give_the_same_logits(name: str, encoder: str) -> None:
    reference, ours = _pair(name, encoder)
    for size in ((64, 96), (128, 32)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            expected = reference.eval()(images)
            assert _relative(main_logits(ours.eval()(images)), expected) <= 1e-5


@pytest.mark.parametrize("size", [(97, 51), (33, 47), (66, 130)])
def test_unet_equals_the_reference_at_any_size(size: tuple[int, int]) -> None:
    reference, ours = _pair("unet", "resnet34")
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = reference.eval()(images)
        assert _relative(main_logits(ours.eval()(images)), expected) <= 1e-5


@pytest.mark.parametrize("name", REFERENCES)
def test_training_computes_the_same_logits_and_statistics(name: str) -> None:
    nets = _pair(name, "resnet34")
    images = torch.randn(2, 3, 64, 96)
    for net in nets:
        net.double().train()
        for module in net.modules():
            if isinstance(module, nn.Dropout2d):
                assert module.p == 0.2
                module.p = 0.0
    with torch.no_grad():
        expected, found = (net(images.double()) for net in nets)
    assert _relative(found["out"], expected) <= 1e-9
    theirs, ours = (net.state_dict() for net in nets)
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", REFERENCES)
def test_only_what_nothing_runs_through_is_frozen(name: str) -> None:
    with torch.device("meta"):
        net = create_model(f"{name}_vgg16_bn" if "plus" in name else f"{name}_resnet34", 5)
    frozen = {key for key, p in net.named_parameters() if not p.requires_grad}
    unused = {"unet_scse": "decoder.blocks.4.attention1.", "unetplusplus": "decoder.center."}
    is_unused = {
        key for key, _ in net.named_parameters() if key.startswith(unused.get(name, "none"))
    }
    assert frozen == is_unused
    assert bool(frozen) == (name in unused)


@pytest.mark.parametrize("name", NEED_STRIDE_2)
def test_an_encoder_without_stride_2_is_refused_where_the_net_needs_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"stride 2.*mit_b0") as caught:
        create_model(f"{name}_mit_b0", 5)
    assert "unet_mit_b0" in caught.value.hint


def test_an_encoder_with_other_strides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    encoder.strides, encoder.channels = (1, 2, 4, 8, 16), (8, 8, 8, 8, 8)
    monkeypatch.setattr(u_shape, "create_encoder", lambda *_, **__: encoder)
    with pytest.raises(ConfigError, match=r"'own' has \[2, 4, 8, 16\]"):
        create_pyramid("own", 3)


def test_the_transposed_convolution_meets_skips_of_any_rounding() -> None:
    torch.manual_seed(0)
    double = Double(6).eval()
    conv, norm, activation = double
    plain = nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 5, 7)
    with torch.inference_mode():
        larger = activation(norm(plain(x, output_size=[11, 15])))
        for height, width in ((9, 13), (9, 15), (10, 14), (11, 13), (11, 15)):
            found = double(x, (height, width))
            torch.testing.assert_close(found, larger[..., :height, :width])


def test_every_step_up_doubles_to_one_pixel_without_a_map_of_stride_2() -> None:
    """Else two runtimes pick different neighbours: side 229 from 58 over 114, say."""
    with torch.device("meta"):
        chain = UpChain(create_pyramid("mit_b0", 3), [])
    for side in range(32, 2049):
        for rounded in (side // 4, -(-side // 4)):  # ConvNeXt, MiT
            maps = [torch.empty(1, 1, rounded, 8, device="meta")] * 4
            *_, half, whole = (size[0] for size, _ in chain._steps(maps, torch.Size((side, 32))))
            assert abs(half - 2 * rounded) <= 1
            assert abs(whole - 2 * half) <= 1
            assert side % 4 or half == side // 2
