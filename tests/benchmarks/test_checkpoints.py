"""Checkpoints that later work builds on: whole, small enough, allowed, and as good as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from segdeploy.core.folder import load_checkpoint
from segdeploy.evaluate import evaluate

CHECKPOINTS = sorted((Path(__file__).parents[2] / "benchmarks" / "checkpoints").iterdir())


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_a_published_checkpoint_is_whole_small_and_says_what_it_may_be_used_for(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.size_mib <= 25
    assert "research use" in checkpoint.manifest.note
    assert (path / "train.toml").is_file()


def test_they_stay_small_together() -> None:
    files = [file for path in CHECKPOINTS for file in path.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 40e6


@pytest.mark.slow
def test_the_camvid_checkpoint_reaches_its_promise(shared_data: Path) -> None:
    camvid = shared_data / "camvid"
    if not camvid.is_dir():
        pytest.skip("CamVid is not here")
    path = next(p for p in CHECKPOINTS if p.name == "lraspp_mobilenet_v3_large-camvid")
    result = evaluate(path, data=f"camvid:{camvid}", save=False)
    assert result.num_images == 101
    assert result.mean_iou is not None
    assert result.mean_iou >= 0.61
