"""Meters against slow computations with NumPy, and against two real processes."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from segdeploy.train import MetricLogger, SmoothedValue

VALUES = np.random.default_rng(0).normal(size=57).tolist()
COUNTS = np.random.default_rng(1).integers(1, 9, size=57).tolist()


@pytest.mark.parametrize("window", [1, 2, 20, 100])
def test_a_meter_equals_numpy_at_every_step(window: int) -> None:
    meter = SmoothedValue(window)
    for done, (value, count) in enumerate(zip(VALUES, COUNTS, strict=True), start=1):
        meter.update(value, count)
        last = np.array(VALUES[:done])[-window:]
        assert meter.median == pytest.approx(np.median(last))
        assert meter.avg == pytest.approx(last.mean())
        assert meter.max == last.max()
        assert meter.value == value
        whole = np.average(VALUES[:done], weights=COUNTS[:done])
        assert meter.global_avg == pytest.approx(whole)


def test_a_meter_without_values_is_nan_and_prints() -> None:
    meter = SmoothedValue()
    found = (meter.median, meter.avg, meter.max, meter.value, meter.global_avg)
    assert all(math.isnan(v) for v in found)
    assert str(meter) == "nan (nan)"


def test_the_form_is_filled_in() -> None:
    meter = SmoothedValue(2, "{median} {avg} {max} {value} {global_avg}")
    for value in (3.0, 1.0, 5.0):
        meter.update(value)
    assert str(meter) == "3.0 3.0 5.0 5.0 3.0"


def test_meters_are_made_as_they_are_named() -> None:
    meters = MetricLogger(" | ")
    meters.add_meter("lr", SmoothedValue(1, "{value:.6f}"))
    meters.update(3, loss=1.0, lr=0.5)
    meters.update(1, loss=5.0)
    assert meters.loss.global_avg == 2.0
    assert str(meters) == "lr: 0.500000 | loss: 5.0000 (2.0000)"
    with pytest.raises(AttributeError, match="no meter 'accuracy'"):
        _ = meters.accuracy


class _Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def test_the_loop_tells_waiting_from_working_and_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = _Clock(monkeypatch)

    class Loader:
        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Iterator[int]:
            for number in range(8):
                clock.now += 2.0
                yield number

    lines: list[str] = []
    meters = MetricLogger(write=lines.append)
    done = []
    for number in meters.log_every(Loader(), 3, "epoch 1"):
        clock.now += 10.0
        meters.update(loss=number)
        done.append(number)
    assert done == list(range(8))
    assert (meters.data.count, meters.data.avg, meters.time.avg) == (8, 2.0, 12.0)
    assert [re.match(r"epoch 1 \[(\d)/8\]", line)[1] for line in lines[:-1]] == list("1478")  # type: ignore[index]
    assert "eta: 0:00:48" in lines[1]  # 4 of 8 done at 12 s each.
    assert "data: 2.0000 (2.0000)" in lines[1]
    assert "loss: 3.0000 (1.5000)" in lines[1]
    assert lines[-1] == "epoch 1 total: 0:01:36 (12.0000 s / it)"


def test_the_loop_takes_what_has_no_length_and_may_be_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(MetricLogger().log_every(iter("ab"), 1, "x")) == ["a", "b"]
    said = capsys.readouterr().err
    assert "x [   1/?]" in said
    assert "eta" not in said
    assert list(MetricLogger().log_every(iter("ab"), 0)) == ["a", "b"]
    assert list(MetricLogger().log_every([], 5, "y")) == []
    assert capsys.readouterr().err == "y total: 0:00:00 (0.0000 s / it)\n"


_RANK = """
import sys
from segdeploy.core.ending import end_process
from segdeploy.frameworks.distributed import process_group
from segdeploy.train import MetricLogger

with process_group("cpu", 60) as group:
    meters = MetricLogger()
    if group.rank == 0:
        meters.update(3, loss=1.0)
        meters.update(1, time=4.0)
    else:  # In another order, as another rank might.
        meters.update(2, time=1.0)
        meters.update(1, loss=9.0)
    meters.synchronize(group)
    first = meters.loss.global_avg, meters.time.global_avg, meters.loss.value
    meters.update(4, loss=5.0 + group.rank)
    meters.loss.synchronize(group)
    meters.loss.synchronize(group)
    print(*first, meters.loss.global_avg, meters.loss.count)
end_process(0)  # Threads of the group may outlive it.
"""


def test_two_processes_have_the_averages_of_all_their_values() -> None:
    """However often they exchange: (3x1 + 9) / 4, then with 4x5 and 4x6 more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", _RANK], env=env | {"RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    found = [[float(word) for word in out.split()] for out, _ in outputs]
    total = np.average([1, 9, 5, 6], weights=[3, 1, 4, 4])
    assert found[0] == pytest.approx([3.0, 2.0, 1.0, total, 12])
    assert found[1] == pytest.approx([3.0, 2.0, 9.0, total, 12])
