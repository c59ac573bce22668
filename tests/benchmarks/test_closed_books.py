"""What the check of the regions can find: time that is booked on the wrong one."""

from __future__ import annotations

import pytest

from benchmarks.closed_books import closes, preprocess_ms, runtime_off
from segdeploy.core.contract import OutputKind
from segdeploy.core.folder import Checkpoint

REGIONS = {
    "preprocess": 3.0, "host_to_device": 0.5, "run": 20.0, "device_to_host": 1.5, "postprocess": 8.0
}  # fmt: skip


def test_what_the_runtime_takes_lies_between_run_and_run_with_its_copies() -> None:
    for plain_ms in (20.0, 21.0, 22.0):
        assert runtime_off(REGIONS, plain_ms, OutputKind.LOGITS) == 0
    assert runtime_off(REGIONS, 40.0, OutputKind.LOGITS) == pytest.approx(0.45)
    assert runtime_off(REGIONS, 16.0, OutputKind.LOGITS) == pytest.approx(0.25)
    assert runtime_off(REGIONS, 30.0, OutputKind.LOW_LOGITS) == 0
    moved = REGIONS | {"run": 10.0, "postprocess": 18.0}  # The sum is the same.
    assert runtime_off(moved, 21.0, OutputKind.LOGITS) > 0.1


def test_books_that_add_up_may_still_not_close() -> None:
    assert closes({"remainder_share": 0.01})
    assert closes({"error": "not here"})
    assert not closes({"remainder_share": 0.03})
    assert not closes({"remainder_share": 0.0, "runtime_off_share": 0.2})
    assert not closes({"remainder_share": 0.0, "preprocess_off_share": 0.2})


def test_preprocessing_alone_takes_time(tiny_checkpoint: Checkpoint) -> None:
    assert preprocess_ms(tiny_checkpoint.manifest, (64, 96)) > 0
