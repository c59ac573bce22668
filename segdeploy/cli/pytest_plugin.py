"""A latency gate as a pytest fixture: `def test_latency(segdeploy_gate): ...`.

    def test_the_new_graph_is_no_slower(segdeploy_gate):
        segdeploy_gate("runs/base/unet/onnx-fp32", "runs/head/unet/onnx-fp32", max_slowdown="5%")

A regression or a broken candidate fails the test with the gate's sentence. "Cannot tell" is neither
a pass nor a failure of the candidate: by default the test is skipped with the reason; the ini
option `segdeploy_inconclusive` makes it `fail` or `warn`.

pytest imports this module at every start, so it imports nothing but pytest itself; a gate brings
what it needs. Answers travel as user properties of the report, which pytest-xdist carries home and
`--junitxml` writes down. Under pytest-xdist gates wait for each other, over all that a user runs;
a test that is no gate does not, and disturbs them. PYTEST_DONT_REWRITE: nothing is asserted here.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from segdeploy.core.gate import GateResult

INCONCLUSIVE = "segdeploy_inconclusive"
PROPERTY = "segdeploy_gate"
_CHOICES = ("skip", "fail", "warn")


class InconclusiveGateWarning(UserWarning):
    """A gate could not tell, and the ini option says to warn."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        INCONCLUSIVE,
        "What an inconclusive gate does to its test: skip (default), fail or warn.",
        default="skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a value of the ini option that is none."""
    chosen = config.getini(INCONCLUSIVE)
    if chosen not in _CHOICES:
        raise pytest.UsageError(f"{INCONCLUSIVE} = {chosen}: write one of {', '.join(_CHOICES)}.")


@pytest.fixture
def segdeploy_gate(request: pytest.FixtureRequest) -> Callable[..., GateResult]:
    """A function that compares a candidate with a baseline, interleaved, now.

    `segdeploy_gate(baseline, candidate, max_slowdown="5%", budget="60s")` takes folders as
    `segdeploy gate` does. `limits` are those of segdeploy.toml, `{"memory": "10%"}`; further
    arguments are those of `GatePlan`, as `threads=1` or `size="96x128"`. It returns the answer if
    it passes; what cannot be compared fails the test.
    """

    def compare(
        baseline: str | Path,
        candidate: str | Path,
        *,
        max_slowdown: str | float | None = None,
        budget: str | float = "60s",
        limits: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> GateResult:
        slowdown = {} if max_slowdown is None else {"latency": max_slowdown}
        table = {**(limits or {}), **slowdown}
        with _in_words(), _alone():
            result = _run(Path(baseline), Path(candidate), table, {**plan, "budget_s": budget})
        latency = result.latency
        ratio = "" if latency is None or latency.ratio is None else f" (ratio {latency.ratio:.3f})"
        said = f"{result.verdict}: {result.reason}"
        request.node.user_properties.append((PROPERTY, f"{said}{ratio}"))
        _judge(result, said, request.config.getini(INCONCLUSIVE))
        return result

    return compare


def _run(
    baseline: Path, candidate: Path, limits: Mapping[str, Any], plan: dict[str, Any]
) -> GateResult:
    from dataclasses import fields

    from segdeploy.core.errors import ConfigError
    from segdeploy.core.limits import GateLimits, parse_seconds
    from segdeploy.core.sizes import parse_size
    from segdeploy.workflows.gate import GatePlan, gate

    known = [each.name for each in fields(GatePlan)]
    if unknown := [name for name in plan if name not in known]:
        raise ConfigError(
            f"segdeploy_gate has no argument {unknown[0]}.",
            hint=f"Known: max_slowdown, budget, limits, {', '.join(known)}.",
        )
    plan = {**plan, "budget_s": parse_seconds(plan["budget_s"])}
    if isinstance(size := plan.get("size"), str):
        plan["size"] = parse_size(size)
    try:
        asked = GatePlan(**plan)
    except TypeError as error:
        raise ConfigError(f"An argument of segdeploy_gate is of a wrong type: {error}.") from error
    return gate(baseline, candidate, plan=asked, limits=GateLimits.from_table(limits))


@contextmanager
def _in_words() -> Iterator[None]:
    """Fail the test with the sentence of an error of ours; others keep their traceback."""
    from segdeploy.core.errors import SegDeployError

    try:
        yield
    except SegDeployError as error:
        said = f"{type(error).__name__}: {error}"
    else:
        return
    pytest.fail(said, pytrace=False)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for the gates of pytest-xdist's other workers, which would measure each other."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import fcntl

    place = Path(tempfile.gettempdir()) / f"segdeploy-gate-{os.getuid()}.lock"
    handle = os.open(place, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _judge(result: GateResult, said: str, inconclusive: str) -> None:
    code = result.verdict.exit_code
    if result.verdict == "unjudged":  # A stored baseline of another machine.
        pytest.skip(said)
    if code == 0:
        return
    if code == 1 or inconclusive == "fail":
        pytest.fail(said, pytrace=False)
    if inconclusive == "skip":
        pytest.skip(said)
    warnings.warn(said, InconclusiveGateWarning, stacklevel=3)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what each gate said, whatever became of its test.

    A test has a report of its setup, of itself and of its end, each with all that was said so far;
    a gate of a fixture is in the first already, and there may be no second.
    """
    said: dict[str, list[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = getattr(report, "user_properties", ())
            found = [str(value) for name, value in properties if name == PROPERTY]
            if len(found) > len(said.get(getattr(report, "nodeid", ""), ())):
                said[report.nodeid] = found
    lines = [f"{place}: {each}" for place, found in said.items() for each in found]
    if lines:
        terminalreporter.section("segdeploy gates")
        for line in lines:
            terminalreporter.line(line)
