"""Building blocks against torch's own operators and torchvision's own blocks."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.quiet import captured_log
from segdeploy.frameworks.torchscript import trace_module
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.graph.fp16 import cast_to_fp16
from segdeploy.zoo.blocks.aspp import ASPP
from segdeploy.zoo.blocks.pyramid_pooling import AdaptiveAvgPool, adaptive_avg_pool
from segdeploy.zoo.blocks.separable import SeparableConv

prepare_torchvision()
from torchvision.models.segmentation import deeplabv3  # noqa: E402

BINS = (1, 2, 3, 6)


@given(height=st.integers(1, 40), width=st.integers(1, 40), bins=st.integers(1, 8))
def test_pooling_and_its_gradient_equal_torchs(height: int, width: int, bins: int) -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found, expected = adaptive_avg_pool(ours, bins), F.adaptive_avg_pool2d(theirs, bins)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    weight = torch.randn_like(found)
    slope = torch.autograd.grad(found, ours, weight)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, theirs, weight))


def test_pooling_is_not_rounded_to_bfloat16_under_autocast() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 23, 14).bfloat16()
    expected = F.adaptive_avg_pool2d(x.float(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = adaptive_avg_pool(x, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class _Pyramid(nn.Module):
    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(AdaptiveAvgPool(bins)(tensor) for bins in BINS)


def test_traced_pooling_holds_for_other_sizes() -> None:
    traced = trace_module(_Pyramid(), torch.randn(2, 3, 9, 11))
    for size in ((1, 1), (23, 14), (5, 60)):
        x = torch.randn(1, 3, *size)
        for found, bins in zip(traced(x), BINS, strict=True):
            torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, bins))


def test_exported_pooling_holds_for_other_sizes_and_in_half_precision() -> None:
    dim = torch.export.Dim
    sizes = {0: dim("N", min=1, max=64), 2: dim("H", min=1, max=1024), 3: dim("W", min=1, max=1024)}
    with captured_log():
        program = torch.onnx.export(
            _Pyramid().eval(),
            (torch.zeros(2, 3, 9, 11),),
            dynamo=True,
            opset_version=18,
            verbose=False,
            input_names=["tensor"],
            dynamic_shapes=(sizes,),
        )
    assert program is not None
    graph = program.model_proto
    single, half = (
        onnxruntime.InferenceSession(model.SerializeToString())
        for model in (graph, cast_to_fp16(graph))
    )
    rng = np.random.default_rng(0)
    for shape in ((3, 3, 1, 1), (1, 3, 13, 4), (1, 3, 60, 67)):
        x = rng.uniform(2e4, 6e4, shape).astype(np.float32)  # A sum of two overflows fp16.
        for bins, found, rounded in zip(
            BINS, single.run(None, {"tensor": x}), half.run(None, {"tensor": x}), strict=True
        ):
            expected = F.adaptive_avg_pool2d(torch.from_numpy(x), bins).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            np.testing.assert_allclose(rounded, expected, rtol=5e-3)


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_separable_convolution_is_a_dense_one_of_low_rank(dilation: int) -> None:
    torch.manual_seed(0)
    block = SeparableConv(4, 6, dilation).double()
    depthwise, pointwise = block.state_dict().values()
    dense = pointwise * depthwise[:, 0]  # (6, 4, 1, 1) by (4, 3, 3)
    x = torch.randn(1, 4, 11, 7, dtype=torch.float64)
    expected = F.conv2d(x, dense, padding=dilation, dilation=dilation)
    torch.testing.assert_close(block(x), expected)


def test_aspp_equals_torchvisions() -> None:
    torch.manual_seed(0)
    reference = deeplabv3.ASPP(8, [12, 24, 36], 6).eval()
    ours = ASPP(8, 6, is_separable=False).eval()
    for key, value in reference.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if key.endswith("var") else value.normal_()
    ours.load_state_dict(reference.state_dict())
    for size in ((40, 27), (5, 1)):
        x = torch.randn(2, 8, *size)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_a_separable_aspp_separates_only_its_dilated_branches() -> None:
    with torch.device("meta"):
        branches = ASPP(8, 6, is_separable=True).convs
    is_separable = [any(isinstance(m, SeparableConv) for m in b.modules()) for b in branches]
    assert is_separable == [False, True, True, True, False]
