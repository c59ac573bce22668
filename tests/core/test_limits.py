"""Limits of a gate: how they are written, and what is refused."""

from __future__ import annotations

import pytest

from segdeploy.core.errors import ConfigError
from segdeploy.core.gate import Verdict, worst_verdict
from segdeploy.core.limits import GateLimits, parse_seconds, parse_share


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), (" 12.5 % ", 0.125), (0.05, 0.05), ("0.05", 0.05), (".5%", 0.005), ("500%", 5.0),
     ("off", None), (False, None)],
)  # fmt: skip
def test_shares(text: object, share: float | None) -> None:
    found = parse_share(text)
    assert found == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("value", [5, "5", 1.0, "1"])
def test_five_is_not_five_hundred_percent(value: object) -> None:
    with pytest.raises(ConfigError, match="would be") as refused:
        parse_share(value)
    assert "%" in refused.value.hint


@pytest.mark.parametrize("key", ["latencey", "memmory", "Latency", ""])
def test_a_misspelt_limit_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no limit"):
        GateLimits.from_table({"size": "5%", key: "1%"})


def test_what_varies_by_itself_needs_some_room() -> None:
    assert GateLimits(latency=None, size=0.0, mean_iou=0.0).size == 0
    with pytest.raises(ConfigError, match="memory"):
        GateLimits(memory=0.0)


@pytest.mark.parametrize("text", ["", "%", "5 percent", "-5%", "5%%", True, None, "\u0665%", [5]])
def test_what_is_no_share(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("2m", 120), ("1h", 3600), ("500ms", 0.5), (8, 8), ("8", 8)]
)
def test_times(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "1d", "25h", "s", "1 s s"])
def test_what_is_no_time(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_seconds(text)


def test_a_table_gives_its_limits_and_keeps_the_default_of_latency() -> None:
    limits = GateLimits.from_table({"memory": "10%", "mean_iou": "0.5", "budget": "60s"})
    assert limits == GateLimits(latency=0.05, memory=0.1, mean_iou=0.5)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), 11.0])
def test_limits_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError):
        GateLimits(latency=value)


def test_the_worst_verdict_decides() -> None:
    order = [
        Verdict.BROKEN, Verdict.REGRESSION, Verdict.INCONCLUSIVE, Verdict.IMPROVEMENT, Verdict.PASS,
    ]  # fmt: skip
    for index, verdict in enumerate(order):
        assert worst_verdict(order[index:]) is verdict
    assert [verdict.exit_code for verdict in order] == [1, 1, 3, 0, 0]
