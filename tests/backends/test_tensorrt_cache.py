"""The timing cache: kept by place, never handed over damaged. TensorRT's own part on a GPU only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segdeploy.backends.tensorrt_cache import (
    load_timing_cache,
    save_timing_cache,
    timing_cache_file,
)
from segdeploy.backends.tensorrt_plan import Place

PLACE = Place("tensorrt", "11.4.0", "linux-x86_64", "NVIDIA H200", "9.0", "580.65", "13.0")


class FakeCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timings"


class FakeConfig:
    """Takes caches that begin as it likes."""

    def __init__(self) -> None:
        self.cache: FakeCache | None = None
        self.given: list[bytes] = []

    def create_timing_cache(self, content: bytes) -> FakeCache | None:
        self.given.append(content)
        return None if content.startswith(b"other version") else FakeCache(content)

    def set_timing_cache(self, cache: FakeCache, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache | None:
        return self.cache


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SEGDEPLOY_CACHE", str(tmp_path / "cache"))
    found = timing_cache_file(PLACE)
    assert found is not None
    return found


def _load(file: Path | None) -> tuple[str, Any]:
    config = FakeConfig()
    return load_timing_cache(config, file), config


def test_it_is_kept_from_build_to_build(file: Path) -> None:
    word, config = _load(file)
    assert (word, config.given) == ("new", [b""])
    save_timing_cache(config, file)
    word, config = _load(file)
    assert (word, config.given) == ("used", [b"+timings"])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_damaged_one_is_ignored_with_a_word(file: Path, caplog: Any) -> None:
    _, config = _load(file)
    save_timing_cache(config, file)
    file.write_bytes(file.read_bytes()[:-1])
    word, config = _load(file)
    assert (word, config.given) == ("damaged, ignored", [b""])
    assert "is damaged, ignored" in caplog.text
    save_timing_cache(config, file)
    assert _load(file)[0] == "used"


def test_one_that_tensorrt_refuses_is_ignored_with_a_word(file: Path, caplog: Any) -> None:
    config = FakeConfig()
    config.cache = FakeCache(b"other version")
    save_timing_cache(config, file)
    word, config = _load(file)
    assert word == "refused by TensorRT, ignored"
    assert config.given[-1] == b""
    assert "refused" in caplog.text


def test_every_version_and_gpu_has_its_own(file: Path) -> None:
    others = [
        timing_cache_file(dataclasses.replace(PLACE, **change))
        for change in ({"tensorrt": "10.9"}, {"gpu": "NVIDIA L4"}, {"capability": "8.9"})
    ]
    assert len({file, *others}) == 4


def test_it_is_not_used_where_nothing_is_timed() -> None:
    for change in ({"flavour": "tensorrt_rtx"}, {"gpu": "none"}):
        assert timing_cache_file(dataclasses.replace(PLACE, **change)) is None
    assert _load(None)[0] == "not used"


def test_a_folder_that_cannot_be_written_is_no_failure(
    file: Path, tmp_path: Path, caplog: Any
) -> None:
    _, config = _load(file)
    (tmp_path / "cache").write_text("a file is in the way")
    save_timing_cache(config, file)
    assert "cannot be kept" in caplog.text
