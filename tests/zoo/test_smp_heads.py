"""PSPNet, DeepLabV3(+), PAN, UPerNet, SegFormer and DPT against segmentation-models-pytorch."""

from __future__ import annotations

import warnings
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from segdeploy.backends.onnx_export import _run_exporter
from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.frameworks.quiet import captured_log
from segdeploy.frameworks.torchscript import trace_module
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import MODELS, create_model, main_logits
from segdeploy.zoo.checkpoint import num_parameters

prepare_torchvision()
import segmentation_models_pytorch as smp  # noqa: E402

REFERENCES: dict[str, Any] = {
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3_smp": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "pan": smp.PAN,
    "pspnet": smp.PSPNet,
    "segformer": smp.Segformer,
    "upernet": smp.UPerNet,
}
PAIRS = [
    ("deeplabv3", "resnet34"),
    ("deeplabv3", "mit_b0"),
    ("deeplabv3_smp", "resnet50"),
    ("deeplabv3plus", "resnet34"),
    ("deeplabv3plus", "mobilenet_v2"),
    ("deeplabv3plus", "mit_b0"),
    ("pan", "resnet34"),
    ("pan", "mobilenet_v2"),
    ("pan", "mit_b0"),
    ("pspnet", "resnet34"),
    ("pspnet", "mobilenet_v2"),
    ("pspnet", "mit_b0"),
    ("segformer", "resnet34"),
    ("segformer", "mit_b0"),
    ("segformer", "vgg16_bn"),  # Its map of stride 1 takes no part.
    ("upernet", "resnet34"),
    ("upernet", "mobilenet_v2"),
    ("upernet", "mit_b0"),
]
TRANSFORMERS = [
    ("test_vit", (160, 160)),
    ("test_vit", (64, 96)),
    ("test_vit3", (96, 64)),
    ("vit_tiny_patch16_dinov3_qkvb", (64, 96)),
]


def _structured(net: nn.Module) -> nn.Module:
    """Norms and biases that do something, so that a wrong layer order would show."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("architecture", "encoder"), PAIRS)
def test_logits_equal_smps(architecture: str, encoder: str) -> None:
    torch.manual_seed(0)
    reference = _structured(REFERENCES[architecture](encoder, encoder_weights=None, classes=5))
    ours = create_model(f"{architecture}_{encoder}", 5).eval()
    ours.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, 128, 160)  # PAN's own cannot take less than 128.
    with torch.inference_mode():
        assert _relative(ours(image)["out"], reference(image)) <= 1e-5


@pytest.mark.parametrize(("encoder", "size"), TRANSFORMERS)
def test_logits_equal_those_of_smps_dpt(encoder: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It would rather ignore class tokens that are not there.
        reference = smp.DPT(f"tu-{encoder}", encoder_weights=None, classes=5, dynamic_img_size=True)
    _structured(reference)
    ours = create_model(f"dpt_timm/{encoder}", 5).eval()
    ours.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert _relative(ours(image)["out"], reference(image)) <= 1e-5


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 32), (80, 112)])
@pytest.mark.parametrize("encoder", ["test_vit", "vit_small_patch14_dinov2"])
def test_dpt_takes_any_size(encoder: str, size: tuple[int, int]) -> None:
    """Odd grids and patches of 14, which the reference refuses; padding does not show inside."""
    torch.manual_seed(0)
    net = create_model(f"dpt_timm/{encoder}", 3).eval()
    with torch.inference_mode():
        logits = net(torch.randn(2, 3, *size))["out"]
    assert logits.shape == (2, 3, *size)
    assert torch.isfinite(logits).all()


def test_dpt_pads_to_whole_patches_with_zeros_and_cuts_the_rest_off() -> None:
    torch.manual_seed(0)
    net = create_model("dpt_timm/test_vit", 3).eval()
    image = torch.zeros(1, 3, 64, 64)
    image[..., :50, :59] = torch.randn(50, 59)
    with torch.inference_mode():
        whole, part = net(image)["out"], net(image[..., :50, :59])["out"]
    assert torch.equal(part, whole[..., :50, :59])


def test_of_a_transformer_just_what_no_logit_depends_on_is_frozen() -> None:
    net = create_model("dpt_timm/test_vit", 2)
    frozen = {key for key, p in net.named_parameters() if not p.requires_grad}
    net.requires_grad_()
    net(torch.randn(2, 3, 64, 64))["out"].square().mean().backward()
    assert frozen == {key for key, p in net.named_parameters() if p.grad is None}
    assert "encoder.model.head.weight" in frozen


@pytest.mark.parametrize(
    "encoder",
    ["resnet34", "timm/resnet18", "timm/beit_base_patch16_224", "timm/test_vit.no_such_tag"],
)
def test_dpt_refuses_what_is_no_transformer_of_any_size(encoder: str) -> None:
    with pytest.raises(ConfigError, match=encoder.removeprefix("timm/")) as caught:
        create_model(f"dpt_{encoder}", 2)
    assert "timm/vit_base_patch16_224" in caught.value.hint


def test_dpt_on_an_unknown_transformer_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        create_model("dpt_timm/vit_tinny_patch16_224", 2)
    assert "vit_tiny_patch16_224" in caught.value.hint


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus", "pan"])
def test_an_encoder_that_cannot_be_dilated_is_a_config_error(architecture: str) -> None:
    with pytest.raises(ConfigError, match="swin_tiny"):
        create_model(f"{architecture}_timm/swin_tiny_patch4_window7_224", 2)


def test_three_deeplabs_are_torchvisions_and_smps_has_its_own_name() -> None:
    for encoder in ("resnet50", "resnet101", "mobilenet_v3_large"):
        assert MODELS.get(f"deeplabv3_{encoder}").family == "torchvision"
        own = MODELS.get(f"deeplabv3_smp_{encoder}")
        assert (own.name, own.encoder) == (f"deeplabv3_smp_{encoder}", encoder)
        assert own.family == "segmentation-models-pytorch"


# The SegFormer paper's sizes with its encoder and 150 classes, in millions; zoo table of SMP 0.5.
@pytest.mark.parametrize(
    ("encoder", "millions"),
    [
        ("mit_b0", 3.75),
        ("mit_b1", 13.72),
        ("mit_b2", 24.76),
        ("mit_b3", 44.64),
        ("mit_b4", 61.41),
        ("mit_b5", 82.01),
    ],
)
def test_segformers_have_the_published_sizes(encoder: str, millions: float) -> None:
    with torch.device("meta"):
        count = num_parameters(create_model(f"segformer_{encoder}", 150))
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


class _Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensor: Tensor) -> Tensor:
        logits: Tensor = main_logits(self.net(tensor))
        return logits


@pytest.mark.parametrize("architecture", [*REFERENCES])
def test_a_trace_holds_for_other_sizes(architecture: str) -> None:
    torch.manual_seed(0)
    net = _Logits(_structured(create_model(f"{architecture}_resnet18", 3)))
    traced = trace_module(net, torch.zeros(2, 3, 96, 128))
    for size in ((32, 32), (33, 47), (65, 130)):
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected = net(image)
            assert expected.shape == (1, 3, *size)
            assert _relative(traced(image), expected) <= 1e-5


def _export(net: nn.Module, size: tuple[int, int] | None) -> Any:
    with captured_log():
        graph = _run_exporter(net, size)
    return onnxruntime.InferenceSession(graph.SerializeToString())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*REFERENCES])
def test_a_dynamic_onnx_graph_holds_for_other_sizes(architecture: str) -> None:
    torch.manual_seed(0)
    net = _structured(create_model(f"{architecture}_resnet18", 3))
    session = _export(net, None)
    for size in ((32, 32), (64, 64), (97, 130), (225, 231)):
        image = torch.randn(3, 3, *size)
        with torch.inference_mode():
            expected = net(image)["out"]
        (found,) = session.run(None, {"tensor": image.numpy()})
        assert _relative(torch.from_numpy(found), expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 160), (97, 130)])
def test_an_onnx_graph_of_dpt_holds_for_its_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = _structured(create_model("dpt_timm/test_vit", 3))
    session = _export(net, size)
    image = torch.randn(3, 3, *size)
    with torch.inference_mode():
        expected = net(image)["out"]
    (found,) = session.run(None, {"tensor": image.numpy()})
    assert _relative(torch.from_numpy(found), expected) <= 1e-4
