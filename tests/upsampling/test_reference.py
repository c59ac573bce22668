"""The reference against PyTorch's own interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.task import Task, decision_margin
from segdeploy.upsampling import reference_labels, upsample_logits
from segdeploy.upsampling.reference import find_axis

SIDES = st.integers(1, 70)


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 2**32 - 1))
def test_equals_torch_within_float_rounding(
    h: int, w: int, height: int, width: int, align_corners: bool, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, 5, h, w)).astype(np.float32)
    found = upsample_logits(logits, (height, width), align_corners=align_corners)
    expected = F.interpolate(
        torch.from_numpy(logits), (height, width), mode="bilinear", align_corners=align_corners
    ).numpy()
    # torch's compiler may fuse the multiply-add of a coordinate: one rounding of up to 70.
    np.testing.assert_allclose(found, expected, atol=4e-5, rtol=0)
    margin = decision_margin(expected, Task.MULTICLASS)
    labels = reference_labels(
        logits, (height, width), align_corners=align_corners, task=Task.MULTICLASS
    )
    assert np.array_equal(labels[margin > 1e-4], expected.argmax(axis=1)[margin > 1e-4])


@pytest.mark.parametrize("align_corners", [False, True])
def test_large_maps_lie_where_torch_puts_them(align_corners: bool) -> None:
    ramp = np.arange(256, dtype=np.float32)[None, None, None]
    found = upsample_logits(ramp, (1, 2048), align_corners=align_corners)
    expected = F.interpolate(
        torch.from_numpy(ramp), (1, 2048), mode="bilinear", align_corners=align_corners
    ).numpy()
    np.testing.assert_allclose(found, expected, atol=3e-5, rtol=0)


def test_cells_are_the_runs_of_pixels_between_two_samples() -> None:
    axis = find_axis(3, 12, align_corners=False)
    assert axis.starts.tolist() == [0, 6, 10, 12]  # Two pixels lie before the first sample.
    assert axis.low.tolist() == [0] * 6 + [1] * 4 + [2] * 2
    assert axis.high.tolist() == [1] * 6 + [2] * 6
    assert axis.weight[:2].tolist() == [0, 0]
