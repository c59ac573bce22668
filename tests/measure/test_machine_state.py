"""What the machine did meanwhile: from its own files, and from made-up counters."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from segdeploy.measure.machine_state import (
    parse_clocks,
    read_state,
    state_change,
    state_warnings,
    steal_seconds,
)


def read_with_awk() -> float:
    program = "/^cpu /{print $9}"
    answer = subprocess.run(
        ["awk", program, "/proc/stat"], capture_output=True, text=True, check=True
    )
    return float(answer.stdout) / os.sysconf("SC_CLK_TCK")


def test_steal_is_what_awk_reads() -> None:
    before, found = read_with_awk(), steal_seconds()
    assert found is not None
    assert before <= found <= read_with_awk()


def test_nothing_is_said_of_a_moment() -> None:
    change = state_change(read_state(), read_state())
    assert change["seconds"] >= 0.001
    assert state_warnings({**change, "steal_share": 0.0, "gpu_clocks": []}) == []


def state(**changed: Any) -> dict[str, Any]:
    return {
        "at_s": 0.0, "busy_s": 0.0, "steal_s": 0.0, "throttle_count": 3.0, "temperature_c": 50.0,
        "frequency_mhz": 3000.0, "gpu_clocks": [], **changed,
    }  # fmt: skip


def test_throttling_and_stolen_time_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    change = state_change(state(), state(at_s=10.0, steal_s=4.0, throttle_count=5.0))
    assert (change["num_throttled"], change["steal_share"]) == (2.0, 0.1)
    throttled, stolen = state_warnings(change)
    assert "throttled 2 times" in throttled
    assert "10%" in stolen


def test_what_cannot_be_read_is_unknown() -> None:
    change = state_change(state(throttle_count=None, steal_s=None), state(at_s=1.0))
    assert (change["num_throttled"], change["steal_share"]) == (None, None)
    assert state_warnings(change) == []


def test_a_gpus_answer_is_read_and_judged() -> None:
    good = parse_clocks("1980, 1980, 45, 0x0000000000000001")
    slow = parse_clocks("1200, 1980, 88, 0x0000000000000020")
    unknown = parse_clocks("[N/A], 1980, [N/A], [N/A]")
    assert slow == {
        "sm_mhz": 1200.0, "max_sm_mhz": 1980.0, "temperature_c": 88.0, "throttle_reasons": 32,
    }  # fmt: skip
    assert unknown["sm_mhz"] is None
    change = state_change(state(), state(at_s=1.0, gpu_clocks=[good, slow, unknown]))
    (warning,) = state_warnings(change)
    assert warning.startswith("GPU 1 ran below its clock")
