"""Encoders against torchvision, segmentation-models-pytorch and timm, with the same weights."""

from __future__ import annotations

import importlib.util
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdeploy.core.errors import BackendUnavailableError, ConfigError, UnknownNameError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders import ENCODERS, create_encoder
from segdeploy.zoo.encoders.encoder import Encoder

prepare_torchvision()
import segmentation_models_pytorch as smp  # noqa: E402
import timm  # noqa: E402
from torchvision import models  # noqa: E402

TIMM = [
    "timm/convnext_atto",
    "timm/hrnet_w18_small",
    "timm/resnet10t",
    "timm/swin_tiny_patch4_window7_224",
    "timm/vgg11",
    "timm/xception41",
]
NAMES = [*ENCODERS.names(), *TIMM]
UNDILATED = {"vgg16_bn", "timm/vgg11", "timm/swin_tiny_patch4_window7_224", "timm/hrnet_w18_small"}
SIZES = [(64, 64), (65, 97)]
# Channels as segmentation-models-pytorch (first block), WZ and the papers give them.
CHANNELS = [
    ("mobilenet_v2", (16, 24, 32, 96, 1280)),
    ("efficientnet_b0", (32, 24, 40, 112, 320)),
    ("efficientnet_b1", (32, 24, 40, 112, 320)),
    ("efficientnet_b2", (32, 24, 48, 120, 352)),
    ("efficientnet_b3", (40, 32, 48, 136, 384)),
    ("mit_b0", (32, 64, 160, 256)),
    ("mit_b5", (64, 128, 320, 512)),
    ("mobilenet_v3_large", (16, 24, 40, 112, 160)),
    ("mobilenet_v3_small", (16, 16, 24, 48, 96)),
    ("vgg16_bn", (64, 128, 256, 512, 512, 512)),
    ("resnext50_32x4d", (64, 256, 512, 1024, 2048)),
]
# PyTorch-Encoding at ac748410: its models' published counts less their heads, or its backbones'
# less the classifier; the last is torchvision's documented count less norm and classifier.
COUNTS = [
    ("timm/resnet50s", 23_631_808),
    ("timm/resnet101s", 42_623_936),
    ("timm/resnest50d", 25_434_240),
    ("timm/resnest101e", 46_226_016),
    ("timm/resnest200e", 68_152_544),
    ("timm/resnest269e", 108_880_480),
    ("resnext50_32x4d", 22_979_904),
    ("timm/resnext50_32x4d", 22_979_904),
    ("timm/xception65", 37_867_312),
    ("timm/convnext_tiny", 28_589_128 - 2 * 768 - 769_000),
    ("efficientnet_b0", 4_007_548),
    ("mit_b0", 5_552_389 - 2_232_997),
]


def _shapes_only(name: str, **options: Any) -> Encoder:
    """The encoder on the meta device: it computes shapes and gradients' presence, no values."""
    with torch.device("meta"):
        return create_encoder(name, **options)


def _randomized(net: nn.Module) -> nn.Module:
    """Batch norms like trained ones, so that a skipped or swapped one shows."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.LayerNorm | nn.Linear):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.2)
    return net.eval()


def _assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [m.shape for m in found] == [m.shape for m in expected]
    for a, b in zip(found, expected, strict=True):
        assert b.std() > 0
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_channels_and_strides_are_those_of_the_maps(name: str, output_stride: int) -> None:
    if name in UNDILATED and output_stride < 32:
        with pytest.raises(ConfigError, match=r"dilated|output stride"):
            _shapes_only(name, output_stride=output_stride)
        return
    encoder = _shapes_only(name, output_stride=output_stride).eval()
    assert max(encoder.strides) == output_stride
    for size in SIZES:
        with torch.no_grad():
            maps = encoder(torch.zeros(2, 3, *size, device="meta"))
        assert tuple(m.shape[1] for m in maps) == encoder.channels
        for m, stride in zip(maps, encoder.strides, strict=True):
            for side, whole in zip(m.shape[-2:], size, strict=True):
                assert side in {whole // stride, -(-whole // stride)}


@pytest.mark.parametrize(("name", "channels"), CHANNELS)
def test_channels_are_the_published_ones(name: str, channels: tuple[int, ...]) -> None:
    encoder = _shapes_only(name)
    assert encoder.channels == channels
    assert encoder.strides == tuple(32 >> i for i in reversed(range(len(channels))))
    assert encoder.channels_at(8) == channels[-3]


@pytest.mark.parametrize(("name", "expected"), COUNTS)
def test_parameter_counts_are_the_published_ones(name: str, expected: int) -> None:
    assert sum(p.numel() for p in _shapes_only(name).parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("depth", "in_channels"), [(3, 1), (5, 4)])
def test_exactly_what_maps_depend_on_is_trained(name: str, depth: int, in_channels: int) -> None:
    encoder = _shapes_only(name, depth=depth, in_channels=in_channels)
    assert max(encoder.strides) == 2**depth
    maps = encoder(torch.zeros(2, in_channels, 64, 64, device="meta"))
    assert tuple(m.shape[1] for m in maps) == encoder.channels
    torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])
    trained = {key for key, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {key for key, p in encoder.named_parameters() if p.grad is not None}
    if depth == 3 and name in ENCODERS:
        assert len(trained) < len(list(encoder.parameters()))


@pytest.mark.parametrize("name", [n for n in ENCODERS if not n.startswith("mit_")])
def test_classification_weights_of_torchvision_load_unchanged(name: str) -> None:
    with torch.device("meta"):
        state = models.get_model(name, weights=None).state_dict()
    body = {k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))}
    assert 0 < len(body) < len(state)
    _shapes_only(name).load_state_dict(body, strict=True, assign=True)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *product(["resnet34", "resnet50", "mobilenet_v2", "mit_b0"], [8, 16, 32]),
        ("vgg16_bn", 32),
    ],
)
def test_maps_equal_those_of_segmentation_models_pytorch(name: str, output_stride: int) -> None:
    reference = smp.encoders.get_encoder(name, weights=None, output_stride=output_stride)
    encoder = create_encoder(name, output_stride=output_stride).eval()
    encoder.load_state_dict(_randomized(reference).state_dict())
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            # Its first map is the image itself (not for VGG), and for transformers an empty one.
            expected = [m for m in reference(image) if m.shape[1] not in {0, 3}]
            _assert_equal(encoder(image), expected)


def test_mit_drops_residuals_at_the_rates_of_segmentation_models_pytorch() -> None:
    reference = smp.encoders.get_encoder("mit_b2", weights=None)
    encoder = _shapes_only("mit_b2")
    rates = [
        [getattr(b.drop_path, rate, 0.0) for i in range(1, 5) for b in getattr(net, f"block{i}")]
        for net, rate in ((reference, "drop_prob"), (encoder, "p"))
    ]
    assert rates[1] == pytest.approx(rates[0], abs=1e-6)
    assert rates[1][0] == 0.0


def test_mit_is_initialised_as_in_segmentation_models_pytorch() -> None:
    torch.manual_seed(0)
    ours = create_encoder("mit_b1").state_dict()
    for key, weight in smp.encoders.get_encoder("mit_b1", weights=None).state_dict().items():
        assert float(ours[key].std()) == pytest.approx(float(weight.std()), rel=0.2), key


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_resnet_is_dilated_as_by_torchvision(output_stride: int) -> None:
    replace = [False, output_stride == 8, True]
    reference = models.resnet50(weights=None, replace_stride_with_dilation=replace)
    reference.avgpool, reference.fc = nn.Identity(), nn.Identity()
    state = _randomized(reference).state_dict()
    encoder = create_encoder("resnet50", output_stride=output_stride, is_first_dilated=False).eval()
    encoder.load_state_dict(state)
    image = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        deepest = encoder(image)[-1]
        _assert_equal([deepest.flatten(1)], [reference(image)])


def _taps(features: nn.Sequential, taps: tuple[int, ...], x: Tensor) -> list[Tensor]:
    maps = []
    for i, module in enumerate(features):
        x = module(x)
        if i in taps:
            maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("mobilenet_v3_large", (1, 3, 6, 12, 15)),
        ("mobilenet_v3_small", (0, 1, 3, 8, 11)),
    ],
)
def test_mobilenet_v3_is_dilated_as_by_torchvision(name: str, taps: tuple[int, ...]) -> None:
    net = _randomized(models.get_model(name, weights=None, dilated=True))
    features = net.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    encoder = create_encoder(name, output_stride=16).eval()
    encoder.get_submodule("features").load_state_dict(features.state_dict())
    image = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        _assert_equal(encoder(image), _taps(features, taps, image))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_efficientnet_equals_timms(output_stride: int) -> None:
    arguments: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    reference: Any = timm.create_model("efficientnet_b0", pretrained=False, **arguments)
    state = _randomized(reference).state_dict()
    encoder = create_encoder(
        "efficientnet_b0", output_stride=output_stride, is_first_dilated=False
    ).eval()
    # The same layers in the same order, under other names.
    ours = [key for key in encoder.state_dict() if not key.startswith("features.8")]
    theirs = [v for k, v in state.items() if not k.startswith(("conv_head", "bn2", "classifier"))]
    renamed = dict(zip(ours, theirs, strict=True))
    assert not encoder.load_state_dict(renamed, strict=False).unexpected_keys
    image = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        stem = reference.bn1(reference.conv_stem(image))
        deep = reference.forward_intermediates(image, indices=4, intermediates_only=True)
        _assert_equal(encoder(image), [stem, *deep])


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "timm/resnet10t"])
def test_dilation_computes_the_same_net_at_more_places(name: str) -> None:
    """With first convolutions left alone, every second pixel is what the strided net gives."""
    strided: Any = _randomized(create_encoder(name))
    dilated = create_encoder(name, output_stride=8, is_first_dilated=False).eval()
    dilated.load_state_dict(strided.state_dict())
    if name.startswith("timm/"):  # Its shortcut is not averaged then: see the test below.
        for block in (strided.model.layer3[0], strided.model.layer4[0]):
            block.downsample[0] = nn.AvgPool2d(1, 2)
    image = torch.randn(1, 3, 128, 64)
    with torch.inference_mode():
        maps = dilated(image)
        steps = [s // d for s, d in zip(strided.strides, dilated.strides, strict=True)]
        assert max(steps) == 4
        at = [m[..., ::step, ::step] for m, step in zip(maps, steps, strict=True)]
        _assert_equal(at, strided(image))


@pytest.mark.parametrize("name", ["resnet50s", "resnest50d", "resnest50d_4s2x40d"])
def test_published_nets_are_dilated_as_published(name: str) -> None:
    """Rates 1 then 2, 2 then 4; ResNeSt's blocks that lost a stride go on pooling (is_first)."""
    model: Any = _shapes_only(f"timm/{name}", output_stride=8).get_submodule("model")
    for stage, first, later in ((model.layer3, 1, 2), (model.layer4, 2, 4)):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert [c.dilation[0] for c in convs] == [first] + [later] * (len(stage) - 1)
        assert {c.stride for c in convs} == {(1, 1)}
        pools = [m for m in stage.modules() if isinstance(m, nn.AvgPool2d)]
        expected = [(3, 1, 1)] if "resnest" in name else []
        assert [(p.kernel_size, p.stride, p.padding) for p in pools] == expected
        where = stage[0].avd_first if "4s2x40d" in name else getattr(stage[0], "avd_last", None)
        assert (where is not None) == ("resnest" in name)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "vgg11"])
def test_timms_nets_give_their_own_maps(name: str) -> None:
    reference = _randomized(timm.create_model(name, pretrained=False, features_only=True))
    encoder = create_encoder(f"timm/{name}").eval()
    encoder.get_submodule("model").load_state_dict(reference.state_dict())
    size = (224, 224) if "swin" in name else (65, 97)
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = reference(image)
        if "swin" in name:
            expected = [m.permute(0, 3, 1, 2) for m in expected]
        _assert_equal(encoder(image), expected)


def test_a_net_that_needs_whole_sides_is_padded_only_where_it_must() -> None:
    encoder = create_encoder("timm/hrnet_w18_small").eval()
    reference = timm.create_model("hrnet_w18_small", pretrained=False, features_only=True).eval()
    reference.load_state_dict(encoder.get_submodule("model").state_dict())
    image = torch.zeros(1, 3, 64, 96)
    image[..., :47, :65] = torch.randn(1, 3, 47, 65)
    with torch.inference_mode():
        expected = reference(image)
        _assert_equal(encoder(image), expected)
        cut = [m[..., : -(-47 // s), : -(-65 // s)] for m, s in zip(expected, encoder.strides,
                                                                  strict=True)]  # fmt: skip
        _assert_equal(encoder(image[..., :47, :65]), cut)


def test_without_timm_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    with pytest.raises(BackendUnavailableError, match=r"segdeploy\[timm\]"):
        create_encoder("timm/resnet10t")


@pytest.mark.parametrize("name", ["resnest50", "hf-hub:timm/resnet18", "../resnet18"])
def test_an_unknown_name_answers_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean timm/"):
        create_encoder(f"timm/{name}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "strides 16, 16"),
        ("hiera_tiny_224", "cannot be an encoder: RuntimeError"),
        ("resnet18.no_such_tag", "no_such_tag"),
        ("inception_v3", "Kernel size"),  # It takes sides from 75 on.
    ],
)
def test_a_net_that_cannot_be_an_encoder_is_a_config_error(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        create_encoder(f"timm/{name}")


def test_a_depth_that_leaves_no_map_is_a_config_error() -> None:
    for name in ("mit_b0", "timm/convnext_atto"):
        with pytest.raises(ConfigError, match="stride 4"):
            create_encoder(name, depth=1)


@pytest.mark.parametrize("name", ["mit_b0", "efficientnet_b0", "timm/hrnet_w18_small"])
def test_a_trace_fixes_no_size(name: str) -> None:
    from segdeploy.frameworks.torchscript import trace_module

    encoder = _randomized(create_encoder(name))
    traced = trace_module(encoder, torch.zeros(2, 3, 96, 128))
    for batch, size in ((1, (65, 97)), (3, (33, 47))):
        image = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            _assert_equal(traced(image), encoder(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mit_b0", "timm/hrnet_w18_small", "timm/resnest14d"])
def test_an_onnx_export_fixes_no_size(name: str) -> None:
    import onnxruntime

    from segdeploy.frameworks.quiet import captured_log

    class Maps(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.encoder(x))

    encoder = _randomized(create_encoder(name, output_stride=32 if "hrnet" in name else 8))
    dim = torch.export.Dim
    shapes = {0: dim("N", min=1, max=64), 2: dim("H", min=32, max=4096),
              3: dim("W", min=32, max=4096)}  # fmt: skip
    with captured_log():
        program = torch.onnx.export(
            Maps(encoder),
            (torch.zeros(2, 3, 96, 128),),
            dynamo=True,
            opset_version=18,
            verbose=False,
            input_names=["x"],
            dynamic_shapes=(shapes,),
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for batch, size in ((1, (65, 97)), (3, (33, 47)), (2, (32, 32))):
        image = torch.randn(batch, 3, *size)
        with torch.inference_mode():
            expected = encoder(image)
        _assert_equal(
            [torch.as_tensor(m) for m in session.run(None, {"x": image.numpy()})], expected
        )
