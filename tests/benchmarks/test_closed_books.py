"""What the check of the regions can find: time that is booked on the wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.closed_books import closes, compare
from segdeploy.core.folder import Checkpoint

REGIONS = {
    "preprocess": 3.0, "host_to_device": 0.5, "run": 20.0, "device_to_host": 1.5,
    "postprocess": 8.0, "end_to_end": 33.0,
}  # fmt: skip


def test_time_that_is_booked_on_the_wrong_region_shows() -> None:
    found = compare(REGIONS, 22.0, 3.0)
    assert (found["runtime_off_share"], found["preprocess_off_share"]) == (0, 0)
    moved = REGIONS | {"run": 10.0, "postprocess": 18.0}  # The sum is the same.
    assert compare(moved, 22.0, 3.0)["runtime_off_share"] == pytest.approx(10 / 33)
    assert compare(REGIONS, 22.0, 6.3)["preprocess_off_share"] == pytest.approx(0.1)


def test_books_that_add_up_may_still_not_close() -> None:
    assert closes({"remainder_share": 0.01})
    assert closes({"error": "not here"})
    assert not closes({"remainder_share": 0.03})
    assert not closes({"remainder_share": 0.0, "runtime_off_share": 0.2})
    assert not closes({"remainder_share": 0.0, "preprocess_off_share": 0.2})


def test_run_and_preparation_are_timed_from_outside(tiny_checkpoint: Checkpoint) -> None:
    command = [sys.executable, "-m", "benchmarks.runtime_alone", str(tiny_checkpoint.path)]
    done = subprocess.run(
        [*command, "64x96", "0.3"], cwd=Path(__file__).parents[2], check=True, capture_output=True
    )
    run_ms, prepare_ms = map(float, done.stdout.split())
    assert 0 < prepare_ms < run_ms < 1000
