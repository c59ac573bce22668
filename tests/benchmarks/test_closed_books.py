"""What the check of the regions can find: time that is booked on the wrong one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.books_from_outside import watch
from benchmarks.closed_books import closes
from segdeploy.backends.pytorch import ModuleSession
from segdeploy.core.folder import Checkpoint
from segdeploy.measure.regions import Region, enter


def test_a_clock_around_the_session_agrees_with_its_books(tiny_checkpoint: Checkpoint) -> None:
    for each in watch(tiny_checkpoint.path, (64, 96), 0.3).values():
        assert each["distance_ms"] < 0.1 * each["watched_ms"] + 0.02
        assert each["booked_ms"] > 0


def test_time_that_is_booked_on_the_wrong_region_shows(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ModuleSession.run

    def hidden(self: ModuleSession, batch: Any) -> Any:
        found = real(self, batch)
        enter(Region.POSTPROCESS)
        time.sleep(0.005)  # Inside the session, and booked behind it.
        return found

    monkeypatch.setattr(ModuleSession, "run", hidden)
    assert watch(tiny_checkpoint.path, (64, 96), 0.3)["runtime"]["distance_ms"] > 4


def test_books_that_add_up_may_still_not_close() -> None:
    assert closes({"remainder_share": 0.01})
    assert closes({"error": "not here"})
    assert not closes({"remainder_share": 0.03})
    assert not closes({"remainder_share": 0.0, "runtime_off_share": 0.2})
    assert not closes({"remainder_share": 0.0, "preprocess_off_share": 0.2})
