"""The cache of decoded samples: the same samples, within the bound, shared by forked loaders."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task
from segdeploy.data import Dataset, open_dataset
from segdeploy.data.cache import CachedDataset
from segdeploy.data.sample import Sample

HEIGHT, WIDTH, COUNT = 64, 96, 6
SAMPLE_BYTES = HEIGHT * WIDTH * 4  # Three channels and a label of 8 bits.
MIB = 2**20


@dataclass
class Counted:
    """Random samples, drawn anew at each reading; says how often each was read."""

    count: int = COUNT
    size: tuple[int, int] = (HEIGHT, WIDTH)
    reads: Counter[int] = field(default_factory=Counter)
    name: str = "counted/train"
    task: Task = Task.MULTICLASS
    classes: tuple[str, ...] = ("a", "b", "c")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index >= self.count:
            raise IndexError(index)
        self.reads[index] += 1
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.size, 3), np.uint8)
        return Sample(f"s{index}", image, rng.integers(0, 3, self.size, np.uint8))


def _assert_equal(found: Sample, wanted: Sample) -> None:
    assert found.name == wanted.name
    for mine, theirs in ((found.image, wanted.image), (found.label, wanted.label)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_each_sample_is_read_once_and_comes_back_as_it_was() -> None:
    source, reference = Counted(), Counted()
    cached = CachedDataset(source, 100 * SAMPLE_BYTES)
    for index in [3, 0, 5, 1, 2, 4, 3, 3]:
        _assert_equal(cached[index], reference[index])
    assert source.reads == dict.fromkeys(range(COUNT), 1)
    assert (cached.name, cached.task, cached.classes) == (source.name, source.task, source.classes)
    assert len(cached) == COUNT
    with pytest.raises(IndexError):
        cached[COUNT]


@pytest.mark.parametrize(
    ("limit", "num_kept"),
    [(0, 0), (SAMPLE_BYTES - 1, 0), (SAMPLE_BYTES, 1), (4 * SAMPLE_BYTES - 1, 3)],
)
def test_the_bound_holds_and_what_is_beyond_it_is_read_each_time(limit: int, num_kept: int) -> None:
    source, reference = Counted(), Counted()
    cached = CachedDataset(source, limit)
    assert cached.num_bytes == num_kept * SAMPLE_BYTES <= limit
    source.reads.clear()
    for _ in range(2):
        for index in range(COUNT):
            _assert_equal(cached[index], reference[index])
    assert source.reads == dict.fromkeys(range(num_kept, COUNT), 2)


def test_sizes_are_told_without_reading_where_the_data_set_can_tell() -> None:
    class Telling(Counted):
        def image_size(self, index: int) -> tuple[int, int]:
            return HEIGHT, WIDTH + index

    source = Telling()
    cached = CachedDataset(source, 2 * SAMPLE_BYTES)
    source.reads.clear()
    # Those of what is kept come from the samples, which are no wider than the others.
    assert [cached.image_size(i) for i in range(4)] == [
        (HEIGHT, WIDTH), (HEIGHT, WIDTH), (HEIGHT, WIDTH + 2), (HEIGHT, WIDTH + 3),
    ]  # fmt: skip
    assert not source.reads
    assert CachedDataset(Counted(), 0).image_size(5) == (HEIGHT, WIDTH)


def test_what_is_kept_cannot_be_changed_and_does_not_hold_what_it_was_cut_from() -> None:
    class Views(Counted):
        def __getitem__(self, index: int) -> Sample:
            whole = super().__getitem__(index)
            return replace(whole, image=whole.image[:8], label=whole.label[:8])

    sample = CachedDataset(Views(), 100 * SAMPLE_BYTES)[0]
    assert sample.image.base is None
    assert sample.label.base is None
    with pytest.raises(ValueError, match="read-only"):
        sample.image[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        sample.label[0] = 0


def test_a_spawned_loader_gets_no_copy_and_reads_for_itself() -> None:
    cached = CachedDataset(Counted(), 100 * SAMPLE_BYTES)
    packed = pickle.dumps(cached)
    assert len(packed) < SAMPLE_BYTES / 10
    _assert_equal(pickle.loads(packed)[2], Counted()[2])


def _read_all(cached: CachedDataset, answer: Connection) -> None:
    before = _own_bytes()
    total = sum(int(cached[index].image.sum()) for index in range(len(cached)))
    answer.send((total, _own_bytes() - before))


def _own_bytes() -> int:
    """Memory that this process shares with no other, from the kernel's own accounts."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's accounts are Linux's")
def test_forked_loaders_share_the_memory() -> None:
    cached = CachedDataset(Counted(count=8, size=(1024, 1024)), 64 * MIB)
    assert cached.num_bytes == 32 * MIB
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=_read_all, args=(cached, theirs))
    child.start()
    assert ours.poll(60)
    total, own = ours.recv()
    child.join()
    assert total == sum(int(cached[index].image.sum()) for index in range(len(cached)))
    assert own < 4 * MIB


def test_real_pictures_come_back_bit_by_bit(shared_data: Path) -> None:
    plain = open_dataset(f"camvid:{shared_data / 'camvid'}", "val")
    cached = CachedDataset(plain, 3 * MIB)
    assert 0 < cached.num_bytes <= 3 * MIB
    for index in range(5):
        _assert_equal(cached[index], plain[index])


def test_a_training_with_the_cache_equals_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from segdeploy.train import TrainConfig, run, train

    made: list[CachedDataset] = []

    class Noted(CachedDataset):
        def __init__(self, samples: Dataset, limit_bytes: int) -> None:
            super().__init__(samples, limit_bytes)
            made.append(self)

    monkeypatch.setattr(run, "CachedDataset", Noted)
    config = TrainConfig(
        model="lraspp_mobilenet_v3_small", data="synthetic:64x64:16", out=str(tmp_path / "without"),
        epochs=2, batch_size=4, warmup_steps=2, workers=1, device="cpu",
    )  # fmt: skip
    without = train(config)
    assert not made
    cached = train(replace(config, out=str(tmp_path / "with"), cache_mib=1))
    assert [one.num_bytes for one in made] == [16 * 64 * 64 * 4]
    assert cached.manifest.digest == without.manifest.digest


def test_a_negative_size_is_refused() -> None:
    from segdeploy.train import TrainConfig

    with pytest.raises(ConfigError, match="cache_mib must not be negative"):
        TrainConfig(model="unet", data="synthetic", out="run", cache_mib=-1)
