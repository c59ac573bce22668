"""Grouped batches against a slow reading of their definition, and by their properties."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdeploy.core.task import Task
from segdeploy.data.pairs import PairDataset
from segdeploy.train import GroupedBatchSampler
from segdeploy.train.grouped import aspect_groups, aspect_ratios


def _slow_batches(order: list[int], groups: list[int], size: int) -> list[list[int]]:
    """The definition word by word, with lists that are searched instead of tables."""
    batches: list[list[int]] = []
    buffers: list[tuple[int, list[int]]] = []
    for place, index in enumerate(order):
        group = groups[index]
        if group not in [g for g, _ in buffers]:
            buffers.append((group, []))
        buffer = next(b for g, b in buffers if g == group)
        buffer.append(index)
        if len(buffer) == size:
            batches.append(list(buffer))
            buffers = [(g, b) for g, b in buffers if g != group]
        assert place < len(order)
    while len(batches) < len(order) // size:
        largest = max(len(b) for _, b in buffers)
        group, buffer = next((g, b) for g, b in buffers if len(b) == largest)
        buffers = [(g, b) for g, b in buffers if g != group]
        seen = [i for i in order if groups[i] == group]
        place = 0
        while len(buffer) < size:
            buffer.append(seen[place % len(seen)])
            place += 1
        batches.append(buffer)
    return batches


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    num = draw(st.integers(1, 40))
    groups = draw(st.lists(st.integers(0, 4), min_size=num, max_size=num))
    order = draw(st.permutations(range(num)))
    return list(order), groups, draw(st.integers(1, 8))


@given(_cases())
@settings(max_examples=200, deadline=None)
def test_batches_are_those_of_the_definition(case: tuple[list[int], list[int], int]) -> None:
    order, groups, size = case
    sampler = GroupedBatchSampler(order, groups, size)
    found = list(sampler)
    assert found == _slow_batches(order, groups, size)
    assert found == list(sampler), "a second pass is the first"
    assert len(found) == len(sampler) == len(order) // size
    assert all(len(batch) == size for batch in found)
    assert all(len({groups[i] for i in batch}) == 1 for batch in found)


def test_a_leftover_is_filled_up_from_the_start_of_its_group() -> None:
    """Two groups of three in batches of four: one batch in all, the first of the fullest."""
    assert list(GroupedBatchSampler([5, 0, 2, 4, 1, 3], [0, 1, 0, 1, 0, 1], 4)) == [[5, 1, 3, 5]]
    # Of one sample the batch is that sample; of a larger group with one left, its earliest first.
    sampler = GroupedBatchSampler([7, 0, 1, 2, 3, 4, 5, 6], [0] * 7 + [1], 4)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 0]]


@pytest.mark.parametrize("k", [0, 1, 3])
def test_aspect_groups_are_those_of_bisection(k: int) -> None:
    edges = [2.0 ** (i / k - 1) for i in range(2 * k + 1)] if k else [1.0]
    ratios = [0.1, 0.5, 0.7, 0.99, 1.0, 1.01, 4 / 3, 1.5, 16 / 9, 2.0, 3.0]
    assert aspect_groups(ratios, k) == [bisect.bisect_right(edges, r) for r in ratios]


def test_three_steps_to_each_side_make_eight_groups() -> None:
    assert sorted(set(aspect_groups(np.geomspace(0.3, 3, 200).tolist(), 3))) == list(range(8))


def _turned(path: Path, size: tuple[int, int], orientation: int) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_ratios_are_those_of_the_decoded_images(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = _turned(tmp_path / f"a.{suffix}", (60, 20), orientation)
    turned = Image.new("L", (20, 60) if orientation >= 5 else (60, 20))
    turned.save(tmp_path / "label.png")
    data = PairDataset("x", Task.MULTICLASS, ("a",), [(path, tmp_path / "label.png")])
    height, width = data[0].image.shape[:2]
    assert aspect_ratios(data) == [width / height]


def test_ratios_are_read_without_decoding(tmp_path: Path) -> None:
    """A file that ends after its head cannot be decoded, but tells its size."""
    for name in ("a.jpg", "b.png"):
        Image.effect_noise((640, 320), 50).convert("RGB").save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:2000])
    pairs = [(tmp_path / name, tmp_path / name) for name in ("a.jpg", "b.png")]
    assert aspect_ratios(PairDataset("x", Task.MULTICLASS, ("a",), pairs)) == [2.0, 2.0]
