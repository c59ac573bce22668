"""Starting weights: encoders are found under the names of every library, the rest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdeploy.core.errors import CheckpointError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_encoder, create_model
from segdeploy.zoo.initial import adapt_channels, load_initial_weights

prepare_torchvision()
import timm  # noqa: E402
import torchvision  # noqa: E402

smp: Any = pytest.importorskip("segmentation_models_pytorch")

FILE = Path("w.pth")


def _torchvision_resnet() -> dict[str, Tensor]:
    state: dict[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    return state


def _torchvision_mobilenet() -> dict[str, Tensor]:
    state: dict[str, Tensor] = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    return state


def _timm_resnet() -> dict[str, Tensor]:
    state: dict[str, Tensor] = timm.create_model("resnet18", pretrained=False).state_dict()
    return state


def _smp_encoder() -> dict[str, Tensor]:
    net = smp.encoders.get_encoder("resnet18", weights=None)
    state: dict[str, Tensor] = net.state_dict()
    return state


def _smp_whole() -> dict[str, Tensor]:
    state: dict[str, Tensor] = smp.Unet("resnet18", encoder_weights=None, classes=2).state_dict()
    return state


@pytest.mark.parametrize(
    ("model", "encoder", "weights", "place"),
    [
        ("fcn_resnet18", "backbone.", _torchvision_resnet, ""),
        ("unet_resnet18", "encoder.", _torchvision_resnet, ""),
        ("unet_resnet18", "encoder.", _timm_resnet, ""),
        ("fcn_timm/resnet18", "backbone.model.", _timm_resnet, ""),
        ("psp_timm/resnet18", "backbone.model.", _timm_resnet, ""),
        ("fcn_resnet18", "backbone.", _smp_encoder, ""),
        ("fcn_resnet18", "backbone.", _smp_whole, "encoder."),
        ("lraspp_mobilenet_v3_large", "backbone.", _torchvision_mobilenet, "features."),
    ],
)
def test_a_librarys_encoder_is_found_under_our_name(
    model: str, encoder: str, weights: Any, place: str
) -> None:
    torch.manual_seed(0)
    source, module = weights(), create_model(model, 3)
    fresh = {k: v.clone() for k, v in module.state_dict().items()}
    report = load_initial_weights(module, source, FILE)
    found = module.state_dict()
    own = [k for k in found if k.startswith(encoder)]
    assert set(own) <= set(report.loaded)
    for key in own:
        assert torch.equal(found[key], source[place + key.removeprefix(encoder)]), key
    assert set(report.loaded) | set(report.remade) == set(found)
    assert all(torch.equal(found[k], fresh[k]) for k in report.remade)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_timms_classifier_starts_timms_encoder(name: str) -> None:
    """timm renames the stages of an encoder, and a wrapper puts `model.` before them."""
    classifier = timm.create_model(name, pretrained=False)
    features = timm.create_model(name, pretrained=False, features_only=True)
    net = nn.ModuleDict({"encoder": nn.ModuleDict({"model": features}), "head": nn.Conv2d(8, 2, 1)})
    report = load_initial_weights(net, classifier.state_dict(), FILE)
    missed = [k for k in report.remade if k.startswith("encoder.")]
    assert missed == []
    image = torch.randn(1, 3, 64, 64)
    forward: Any = classifier.eval().forward_intermediates
    deepest = forward(image, intermediates_only=True)[-1]
    with torch.inference_mode():
        torch.testing.assert_close(features.eval()(image)[-1], deepest)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
def test_the_first_convolution_is_adapted_as_smp_does(in_channels: int) -> None:
    torch.manual_seed(0)
    source = _torchvision_resnet()
    expected = nn.Conv2d(3, 64, 7)
    expected.weight.data = source["conv1.weight"].clone()
    holder = nn.Sequential(expected)
    smp.encoders._utils.patch_first_conv(holder, in_channels, pretrained=True)
    assert torch.equal(adapt_channels(source["conv1.weight"], in_channels), expected.weight)
    encoder = create_encoder("resnet18", in_channels=in_channels)
    report = load_initial_weights(encoder, source, FILE)
    assert report.adapted == ["conv1.weight"]
    assert torch.equal(encoder.state_dict()["conv1.weight"], expected.weight)
    assert "adapted" in str(report)
    assert report.remade == []


def test_whole_numbers_do_not_start_a_convolution() -> None:
    source = _torchvision_resnet()
    source["conv1.weight"] = source["conv1.weight"].to(torch.int8)
    encoder = create_encoder("resnet18")
    report = load_initial_weights(encoder, source, FILE)
    assert report.remade == ["conv1.weight"]


def test_hardly_fitting_weights_are_refused_and_a_head_alone_does_not_count() -> None:
    module = create_model("fcn_resnet18", 3)
    head = {k: v for k, v in module.state_dict().items() if not k.startswith("backbone.")}
    with pytest.raises(CheckpointError, match=r"0 of the \d+ tensors of the model's encoder"):
        load_initial_weights(module, head, FILE)
    few = dict(list(module.state_dict().items())[:3])
    with pytest.raises(CheckpointError, match=r"3 of the 12\d tensors") as caught:
        load_initial_weights(module, few, FILE)
    assert "backbone.conv1.weight" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (
            "lraspp_mobilenet_v3_small",
            {f"classifier.{s}_classifier.{p}" for s in ("low", "high") for p in ("weight", "bias")},
        ),
        (
            "deeplabv3_mobilenet_v3_large",
            {f"{s}.4.{p}" for s in ("classifier", "aux_classifier") for p in ("weight", "bias")},
        ),
        ("unet", {"out_conv.weight", "out_conv.bias"}),
    ],
)
def test_with_another_class_count_the_heads_are_remade_and_named(
    name: str, heads: set[str]
) -> None:
    source, target = create_model(name, 21), create_model(name, 4)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_initial_weights(target, source.state_dict(), Path("w.pth"))
    assert set(report.remade) == heads
    assert report.skipped == []
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, fresh[key] if key in heads else source.state_dict()[key]), key
    assert all(head in report.to_dict()["remade"] for head in heads)
    assert next(iter(report.remade)) in str(report)


def test_keys_that_the_model_lacks_are_told_and_long_lists_are_short() -> None:
    net = nn.Conv2d(3, 4, 1)
    weights = dict(net.state_dict()) | {f"fc{i}.weight": torch.zeros(2) for i in range(30)}
    report = load_initial_weights(net, weights, Path("w.pth"))
    assert len(report.skipped) == 30
    assert "fc0.weight" in str(report)
    assert "26 more" in str(report)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit: it has 0 of the") as caught:
        load_initial_weights(
            create_model("unet", 2), create_model("lraspp_mobilenet_v3_small", 2).state_dict(),
            Path("w.pth"),
        )  # fmt: skip
    assert "in_conv" in caught.value.hint
    assert "backbone.0.0.weight" in caught.value.hint


def test_a_smaller_sibling_of_the_encoder_is_refused() -> None:
    weights = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    with pytest.raises(CheckpointError, match="59 of the 308 tensors"):
        load_initial_weights(create_model("lraspp_mobilenet_v3_large", 2), weights, FILE)
