"""What is measured is not lost where it cannot be written, nor overwritten by its like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.bench import BenchPlan, bench, measure_interleaved
from segdeploy.core.errors import ArtifactError, ConfigError

MakeArtifact = Callable[..., Path]
FAST = BenchPlan(seconds=0, warmup_s=0, threads=1, size=(8, 12))


def test_a_result_that_cannot_be_written_loses_none(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    paths = [make_artifact(tmp_path, name) for name in ("full", "good")]
    (paths[0] / "bench.json").mkdir()  # As a full disk: writing fails, permissions are fine.
    outcome = measure_interleaved(paths, FAST)
    assert [result.path for result in outcome.results] == [str(path) for path in paths]
    (failure,) = outcome.failures
    assert str(paths[0] / "bench.json") in failure.message
    assert json.loads((paths[1] / "bench.json").read_text())["path"] == str(paths[1])
    with pytest.raises(ArtifactError, match="Cannot write"):
        bench(paths, seconds=0, warmup_s=0, threads=1, size=(8, 12))


def test_a_folder_given_twice_would_keep_the_last_result_only(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    path = make_artifact(tmp_path, "one")
    (tmp_path / "link").symlink_to(path)
    twice = [path, tmp_path / "link"]
    with pytest.raises(ConfigError, match="given 2 times"):
        measure_interleaved(twice, FAST)
    assert len(measure_interleaved(twice, FAST, save=False).results) == 2
