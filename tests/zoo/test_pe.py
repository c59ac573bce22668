"""The nets of PyTorch-Encoding and FastFCN against their papers' formulas, written out slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model
from segdeploy.zoo.architectures.atten import ACFModule, AttenHead
from segdeploy.zoo.architectures.encnet import EncHead
from segdeploy.zoo.architectures.fcfpn import FCFPNHead
from segdeploy.zoo.architectures.jpu import JPU
from segdeploy.zoo.architectures.psp import PyramidPooling
from segdeploy.zoo.architectures.uperhead import UPerHead
from segdeploy.zoo.blocks.encoding import EncModule, Encoding
from segdeploy.zoo.checkpoint import num_parameters

prepare_torchvision()
from torchvision.models import resnet50  # noqa: E402

OUTPUTS = {
    "atten": {"out", "aux"},
    "atten_lateral": {"out", "aux"},
    "atten_se": {"out", "aux", "se"},
    "deeplabv3_pe": {"out", "aux"},
    "encnet": {"out", "aux", "se"},
    "encnet_lateral": {"out", "aux", "se"},
    "fcfpn": {"out"},
    "jpu_deeplabv3": {"out", "aux"},
    "jpu_encnet": {"out", "aux", "se"},
    "jpu_fcn": {"out", "aux"},
    "jpu_psp": {"out", "aux"},
    "psp": {"out", "aux"},
    "uperhead": {"out"},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module) -> Any:
    """The module in double precision and evaluation mode, its norms doing something."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.normal_(norm.bias, 0, 0.2)
    return module.double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def conv_bn_relu(x: Tensor, layers: Any, padding: int = 0, dilation: int = 1) -> Tensor:
    """Convolution, normalisation by the running statistics, ReLU, as formulas."""
    conv, norm = layers[0], layers[1]
    x = F.conv2d(x, conv.weight, padding=padding, dilation=dilation)
    return normalised(x, norm).clamp(min=0)


def normalised(x: Tensor, norm: Any) -> Tensor:
    parts: list[Tensor] = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    mean, var, weight, bias = (part[:, None, None] for part in parts)
    eps: float = norm.eps
    return (x - mean) / (var + eps).sqrt() * weight + bias


def aligned(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def encoded(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """Equations 1 and 2 of the EncNet paper: every pixel, codeword and channel at once."""
    residuals = x.flatten(2).mT[:, :, None] - codewords  # (N, P, K, C)
    weights = (scale * residuals.square().sum(-1)).softmax(-1)  # Their s is -scale.
    return (weights[..., None] * residuals).sum(1)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_encoding_is_the_papers_formula_also_in_single_precision(
    spread: float, offset: float
) -> None:
    layer = Encoding(512, 32)
    with torch.no_grad():
        layer.scale.copy_(-0.5 + spread * (torch.rand(32) - 0.5))
        layer.codewords.add_(offset)
    x = (offset + torch.randn(2, 512, 7, 9)).relu()
    expected = encoded(x.double(), layer.codewords.double(), layer.scale.double())
    assert relative(layer(x).double(), expected) <= 1e-5


def test_gradients_of_encoding_are_those_of_the_formula() -> None:
    layer = Encoding(6, 4).double()
    x = image(2, 6, 3, 5).requires_grad_()
    leaves = [x, layer.codewords, layer.scale]
    weights = image(2, 4, 6)
    found = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    formula = encoded(x, layer.codewords, layer.scale)
    expected = torch.autograd.grad((formula * weights).sum(), leaves)
    for ours, reference in zip(found, expected, strict=True):
        assert relative(ours, reference) <= 1e-9


def test_encoding_keeps_its_precision_under_autocast_and_its_range_in_half() -> None:
    layer = Encoding(512, 32)
    x = 20 * torch.randn(1, 512, 4, 4).relu()  # A pixel's sum of squares exceeds 65504.
    expected = encoded(x.double(), layer.codewords.double(), layer.scale.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(layer(x).double(), expected) <= 1e-5
    assert relative(layer.half()(x.half()).double(), expected) <= 1e-2


def test_codes_are_normalised_each_over_batch_and_channels() -> None:
    module = randomised(EncModule(6, 5)).train()
    module.encoding[1].eval()
    x = image(3, 6, 4, 5)
    layers = module.encoding
    codes = encoded(conv_bn_relu(x, layers[:2]), layers[3].codewords, layers[3].scale)
    mean, var = codes.mean((0, 2))[:, None], codes.var((0, 2), unbiased=False)[:, None]
    codes = (codes - mean) / (var + layers[4].eps).sqrt()
    scene = (codes * layers[4].weight[:, None] + layers[4].bias[:, None]).clamp(min=0).mean(1)
    gate = 1 / (1 + torch.exp(-(scene @ module.fc[0].weight.mT + module.fc[0].bias)))
    features, presence = module(x)
    assert relative(features, (x * (1 + gate[:, :, None, None])).clamp(min=0)) <= 1e-9
    assert relative(presence["se"], scene @ module.selayer.weight.mT + module.selayer.bias) <= 1e-9


def mean_of_neighbours(x: Tensor) -> Tensor:
    """At every second pixel the mean of those of its 3x3 neighbours that exist."""

    def at(i: int, j: int) -> Tensor:
        return x[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))

    height, width = x.shape[2:]
    rows = [[at(i, j) for j in range(0, width, 2)] for i in range(0, height, 2)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_attention_is_a_softmax_over_the_pixels_of_the_half_size_map(size: tuple[int, int]) -> None:
    module = randomised(ACFModule(24))
    x = image(2, 24, *size)
    pooled = mean_of_neighbours(x)

    def projected(conv: Any, t: Tensor) -> Tensor:
        """(N, P, heads, 3)."""
        pixels: Tensor = t.flatten(2).mT @ conv.weight[:, :, 0, 0].mT + conv.bias
        return pixels.reshape(2, -1, 8, 3)

    query, key = projected(module.conv_qs, x), projected(module.conv_qs, pooled)
    energies = torch.einsum("nphc,nqhc->nhpq", query, key) / 3**0.5
    weights = energies.exp() / energies.exp().sum(-1, keepdim=True)
    attended = torch.einsum("nhpq,nqhc->nhcp", weights, projected(module.conv_vs, pooled))
    expected = F.conv2d(attended.reshape(2, 24, *size), module.conv.weight)
    assert relative(module(x), normalised(expected, module.norm_layer) + x) <= 1e-9


def test_attention_is_dropped_in_training_only() -> None:
    module = ACFModule(16)
    x = torch.randn(2, 16, 6, 6)
    module.norm_layer.eval()
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("size", [(13, 9), (12, 6), (4, 1)])
def test_pyramid_pooling_has_bins_of_1_2_3_and_6(size: tuple[int, int]) -> None:
    module = randomised(PyramidPooling(8))
    x = image(2, 8, *size)
    convs = zip((1, 2, 3, 6), (module.conv1, module.conv2, module.conv3, module.conv4), strict=True)
    pooled = [
        aligned(conv_bn_relu(F.adaptive_avg_pool2d(x, bins), conv), size) for bins, conv in convs
    ]
    assert relative(module(x), torch.cat([x, *pooled], 1)) <= 1e-9


def feature_pyramid(head: Any, maps: Sequence[Tensor]) -> Tensor:
    c1, c2, c3, c4 = maps
    p4 = conv_bn_relu(c4, head.c4conv, 1)
    p3 = aligned(p4, c3.shape[2:]) + conv_bn_relu(c3, head.fpn_lateral[2])
    p2 = aligned(p3, c2.shape[2:]) + conv_bn_relu(c2, head.fpn_lateral[1])
    p1 = aligned(p2, c1.shape[2:]) + conv_bn_relu(c1, head.fpn_lateral[0])
    smoothed = [conv_bn_relu(p, head.fpn_out[i], 1) for p, i in ((p3, 2), (p2, 1), (p1, 0))]
    joined = torch.cat([aligned(p, c1.shape[2:]) for p in (p4, *smoothed)], 1)
    joined = conv_bn_relu(joined, head.conv5[:2], 1)
    return F.conv2d(joined, head.conv5[-1].weight, head.conv5[-1].bias)


def test_fcfpn_and_uperhead_join_the_pyramid_at_the_finest_map() -> None:
    maps = [image(1, 3, 17, 23), image(1, 4, 9, 12), image(1, 5, 5, 6), image(1, 8, 3, 3)]
    head = randomised(FCFPNHead([3, 4, 5, 8], 2))
    assert relative(head(maps)["out"], feature_pyramid(head, maps)) <= 1e-9
    head = randomised(UPerHead([3, 4, 5, 8], 2))
    pooled = head.extramodule(maps[-1])
    assert pooled.shape == (1, 16, 3, 3)
    assert relative(head(maps)["out"], feature_pyramid(head, [*maps[:3], pooled])) <= 1e-9


def test_jpu_sees_the_three_joined_maps_at_four_rates() -> None:
    module = randomised(JPU([3, 4, 5]))
    finest, maps = image(1, 2, 18, 22), [image(1, 3, 9, 11), image(1, 4, 5, 6), image(1, 5, 3, 3)]
    convs = (module.conv3, module.conv4, module.conv5)
    third, fourth, fifth = (conv_bn_relu(x, c, 1) for x, c in zip(maps, convs, strict=True))
    joined = torch.cat([aligned(fifth, (9, 11)), aligned(fourth, (9, 11)), third], 1)
    expected = []
    for rate in (1, 2, 4, 8):
        separable, norm, _ = module.get_submodule(f"dilation{1 + rate.bit_length() - 1}")
        x = F.conv2d(joined, separable.conv1.weight, padding=rate, dilation=rate, groups=1536)
        x = F.conv2d(normalised(x, separable.bn), separable.pointwise.weight)
        expected.append(normalised(x, norm).clamp(min=0))
    found = module([finest, *maps])
    assert found[0] is finest
    assert found[2] is maps[1]
    assert relative(found[-1], torch.cat(expected, 1)) <= 1e-9


@pytest.mark.parametrize("make_head", [EncHead, AttenHead])
def test_a_lateral_head_joins_the_last_three_maps(make_head: Any) -> None:
    head = randomised(make_head([3, 4, 5, 64], 2, is_lateral=True))
    maps = [image(1, channels, 5, 6) for channels in (3, 4, 5, 64)]
    deepest = conv_bn_relu(maps[3], head.conv5, 1)
    laterals = [conv_bn_relu(maps[i + 1], head.connect[i]) for i in (0, 1)]
    expected = conv_bn_relu(torch.cat([deepest, *laterals], 1), head.fusion, 1)
    assert relative(head.fuse(maps), expected) <= 1e-9


@pytest.mark.parametrize(
    ("name", "dilated"), [("encnet_lateral", True), ("fcfpn", False), ("jpu_fcn", False)]
)
def test_the_head_gets_the_maps_of_torchvisions_resnet(name: str, dilated: bool) -> None:
    net: Any = randomised(create_model(f"{name}_resnet50", 3))
    net.training = True  # Of the frame only: auxiliary logits, norms by their statistics.
    body = resnet50(weights=None, replace_stride_with_dilation=[False, dilated, dilated])
    body.load_state_dict({**body.state_dict(), **net.backbone.state_dict()})
    body.double().eval()
    x = image(1, 3, 65, 47)
    c1 = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(x)))))
    c2 = body.layer2(c1)
    c3 = body.layer3(c2)
    c4 = body.layer4(c3)
    found = net(x)
    maps = net.jpu([c1, c2, c3, c4])
    assert relative(found["out"], aligned(net.head(maps)["out"], (65, 47))) <= 1e-9
    if net.auxlayer is not None:
        hidden = conv_bn_relu(c3, net.auxlayer.conv5[:2], 1)
        last = net.auxlayer.conv5[-1]
        logits = F.conv2d(hidden, last.weight, last.bias)
        assert relative(found["aux"], aligned(logits, (65, 47))) <= 1e-9


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_and_gradients_in_training_and_logits_alone_in_evaluation(name: str) -> None:
    net = create_model(f"{name}_resnet18", 3, in_channels=4)
    found = net.train()(torch.randn(2, 4, 64, 71))
    shapes = {key: (2, 3) if key == "se" else (2, 3, 64, 71) for key in OUTPUTS[name]}
    assert {key: tuple(logits.shape) for key, logits in found.items()} == shapes
    sum(logits.square().mean() for logits in found.values()).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []
    with torch.inference_mode():
        found = net.eval()(torch.randn(1, 4, 33, 47))
    assert {key: tuple(logits.shape) for key, logits in found.items()} == {"out": (1, 3, 33, 47)}


def test_every_uperhead_has_the_same_size() -> None:
    """In PyTorch-Encoding a list that instances share grows with each."""
    with torch.device("meta"):
        sizes = [num_parameters(create_model("uperhead_resnet50", 150)) for _ in range(3)]
    assert sizes == [44_295_766 - 123_776] * 3  # Less the deep stem of resnet50s.


def test_names_inside_heads_are_those_of_the_two_systems() -> None:
    with torch.device("meta"):
        lateral = create_model("encnet_lateral_resnet50", 59).state_dict()
        jpu = create_model("jpu_encnet_resnet50", 59).state_dict()
    shapes = {
        "head.conv5.0.weight": (512, 2048, 3, 3),
        "head.connect.1.0.weight": (512, 1024, 1, 1),
        "head.fusion.1.weight": (512,),
        "head.encmodule.encoding.3.codewords": (32, 512),
        "head.encmodule.encoding.4.running_mean": (32,),
        "head.encmodule.fc.0.weight": (512, 512),
        "head.encmodule.selayer.weight": (59, 512),
        "head.conv6.1.weight": (59, 512, 1, 1),
        "auxlayer.conv5.4.weight": (59, 256, 1, 1),
    }
    assert {key: tuple(lateral[key].shape) for key in shapes} == shapes
    shapes = {
        "jpu.conv5.0.weight": (512, 2048, 3, 3),
        "jpu.dilation4.0.conv1.weight": (1536, 1, 3, 3),
        "jpu.dilation4.0.pointwise.weight": (512, 1536, 1, 1),
        "head.conv5.0.weight": (512, 2048, 1, 1),
    }
    assert {key: tuple(jpu[key].shape) for key in shapes} == shapes
