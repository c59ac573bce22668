"""Sizes that a payload is built for: bounds, their spelling, and what plans make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from segdeploy.cli.parsing import parse_sizes
from segdeploy.core.contract import IoContract, SizeBounds
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, fixed_preprocess
from segdeploy.core.target import ExportTarget
from segdeploy.export.plan import default_name


def test_bounds_are_written_as_they_are_read() -> None:
    bounds = SizeBounds((64, 96), (128, 160), (256, 512))
    assert str(bounds) == "64x96..128x160..256x512"
    assert parse_sizes(str(bounds)) == bounds
    assert parse_sizes("64x96..256x512") == SizeBounds((64, 96), (256, 512), (256, 512))
    assert parse_sizes("360x480") == (360, 480)
    assert parse_sizes("dynamic") is None


@pytest.mark.parametrize(
    "text", ["64x64..32x32", "64x64..", "..64x64", "1x2..3x4..5x6..7x8", "64..128", "dynamic..9x9"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_sizes(text)


def test_bounds_say_what_they_take() -> None:
    bounds = SizeBounds((64, 96), (64, 96), (256, 512), max_batch=2)
    assert bounds.has(1, 64, 96)
    assert bounds.has(2, 256, 512)
    assert not bounds.has(3, 64, 96)
    assert not bounds.has(0, 64, 96)
    assert not bounds.has(1, 63, 96)
    assert not bounds.has(1, 64, 513)


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="batches up to 0"):
        SizeBounds((64, 64), (64, 64), (64, 64), max_batch=0)


def test_folder_names_say_size_and_batch() -> None:
    target, io = ExportTarget.parse("tensorrt-fp16"), IoContract()
    bounds = SizeBounds((64, 64), (96, 96), (128, 128), 4)
    assert default_name(target, io, None) == "tensorrt-fp16"
    assert default_name(target, io, (64, 96)) == "tensorrt-fp16+64x96"
    found = default_name(target, io, bounds, 4)
    assert found == "tensorrt-fp16+64x64..96x96..128x128+batch4"
    assert Path(found).name == found


@pytest.mark.parametrize(
    ("own", "expected"), [((180, 240), (96, 128)), ((100, 150), (100, 150)), (None, None)]
)
def test_a_range_changes_only_a_fixed_size_outside_it(
    own: tuple[int, int] | None, expected: tuple[int, int] | None
) -> None:
    rule = SizeRule.LETTERBOX if own else SizeRule.KEEP
    spec = PreprocessSpec(size_rule=rule, size=own)
    bounds = SizeBounds((64, 96), (96, 128), (128, 160))
    found = fixed_preprocess(spec, None, bounds)
    assert (found.size_rule, found.size) == (rule, expected)
