"""The fixture `segdeploy_gate` in a pytest of its own; the gate's answer is given, or measured."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

import segdeploy.cli.pytest_plugin as plugin
import segdeploy.workflows.gate as room
from segdeploy.cli.pytest_plugin import PROPERTY
from segdeploy.core.gate import GateResult, MetricVerdict, Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.workflows.gate import GatePlan

pytest_plugins = ["pytester"]
PLUGIN = "segdeploy.cli.pytest_plugin"
# Installed, the entry point brings the plugin as `segdeploy`: blocked here, so that it is not
# registered twice, whether or not this tree is installed. An installation that is this tree lists
# all its modules as the plugin's, and pytest warns of those that this process has imported.
LOAD = (
    "-p", "no:segdeploy", "-p", PLUGIN, "-p", "no:cacheprovider",
    "-W", "ignore:Module already imported",
)  # fmt: skip


def answer(verdict: Verdict) -> GateResult:
    latency = MetricVerdict(
        name="latency", unit="ms", verdict=verdict, baseline=1.0, candidate=1.2, ratio=1.2,
        ratio_ci=(1.1, 1.3), limit=1.05, minimal_detectable_effect=0.1, reason="of latency",
    )  # fmt: skip
    return GateResult(
        baseline="a", candidate="b", verdict=verdict, reason="20 % slower", metrics=(latency,)
    )


Asked = dict[str, Any]


TESTS = """
    import pytest

    @pytest.mark.parametrize("verdict", ["pass", "improvement", "regression", "broken"])
    def test_clear(segdeploy_gate, verdict):
        assert segdeploy_gate("a", verdict).verdict == verdict

    def test_unclear(segdeploy_gate):
        segdeploy_gate("a", "inconclusive")
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What gates are asked; they answer by the candidate's name: verdicts are input here."""
    seen: Asked = {}

    def gate(baseline: Path, candidate: Path, *, plan: GatePlan, limits: GateLimits) -> GateResult:
        seen.update(baseline=baseline, candidate=candidate, plan=plan, limits=limits)
        return answer(Verdict(candidate.name))

    monkeypatch.setattr(room, "gate", gate)
    return seen


@pytest.fixture
def given_answers(pytester: pytest.Pytester, asked: Asked) -> pytest.Pytester:
    """A pytest folder with a test for each verdict."""
    assert not asked  # The answers are in place.
    pytester.makepyfile(TESTS)
    return pytester


def write_ini(pytester: pytest.Pytester, chosen: str) -> None:
    pytester.makeini(f"[pytest]\nsegdeploy_inconclusive = {chosen}\nfilterwarnings = error\n")


def test_verdicts_become_outcomes_and_are_summed_up(given_answers: pytest.Pytester) -> None:
    result = given_answers.runpytest_inprocess("-rs", "-W", "error", *LOAD)
    result.assert_outcomes(passed=2, failed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*= segdeploy gates =*",
            "*test_clear?regression?: regression: 20 % slower (ratio 1.200)",
            "*test_clear?broken?: broken: 20 % slower*",
        ]
    )
    result.stdout.fnmatch_lines(["*SKIPPED*inconclusive: 20 % slower*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("chosen", "outcomes"),
    [("fail", {"failed": 1}), ("warn", {"passed": 1, "warnings": 1})],
)
def test_inconclusive_does_what_the_ini_option_says(
    given_answers: pytest.Pytester, chosen: str, outcomes: dict[str, int]
) -> None:
    given_answers.makeini(f"[pytest]\nsegdeploy_inconclusive = {chosen}\n")
    result = given_answers.runpytest_inprocess("-k", "unclear", "-W", "default", *LOAD)
    result.assert_outcomes(**outcomes, deselected=4)


def test_another_value_of_the_ini_option_is_refused(given_answers: pytest.Pytester) -> None:
    write_ini(given_answers, "pass")
    result = given_answers.runpytest_inprocess(*LOAD)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*segdeploy_inconclusive = pass: write one of skip, fail, warn*"])


def test_limits_and_plan_reach_the_gate(pytester: pytest.Pytester, asked: Asked) -> None:
    pytester.makepyfile(
        """
        def test_gate(segdeploy_gate):
            segdeploy_gate(
                "a", "pass", max_slowdown="3%", budget="2m", limits={"size": "1%"}, threads=1,
                size=(64, 96),
            )
        """
    )
    pytester.runpytest_inprocess(*LOAD).assert_outcomes(passed=1)
    assert (asked["baseline"], asked["candidate"]) == (Path("a"), Path("pass"))
    assert asked["limits"] == GateLimits(latency=0.03, size=0.01)
    assert asked["plan"] == GatePlan(budget_s=120, threads=1, size=(64, 96))
    pytester.makepyfile("""def test_gate(segdeploy_gate): segdeploy_gate("a", "pass")""")
    pytester.runpytest_inprocess(*LOAD).assert_outcomes(passed=1)
    assert (asked["limits"], asked["plan"]) == (GateLimits(), GatePlan())


@pytest.mark.slow
def test_answers_come_home_from_other_processes(pytester: pytest.Pytester) -> None:
    """The other process has no gate to be replaced: what it hands home is planted."""
    pytest.importorskip("xdist")
    pytester.makepyfile(
        f"""
        def test_gate(request):
            request.node.user_properties.append(("{PROPERTY}", "regression: 20 % slower"))
        """
    )
    arguments = ("-n", "1", "--junitxml", "j.xml")
    result = pytester.runpytest_subprocess(*LOAD, *arguments)
    result.stdout.fnmatch_lines(["*segdeploy gates*", "*test_gate: regression: 20 % slower"])
    assert 'value="regression: 20 % slower"' in (pytester.path / "j.xml").read_text()


def test_a_bad_baseline_is_an_error_of_the_test_not_of_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_gate(segdeploy_gate):
            segdeploy_gate("absent", "absent")
        """
    )
    result = pytester.runpytest_inprocess(*LOAD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ArtifactError*absent*"])
    result.stdout.no_fnmatch_line("*Error*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("siez=(64, 96)", "*ConfigError: segdeploy_gate has no argument siez.*"),
        ("size='x'", "*ConfigError: 'x' is not a size.*"),
        ("size=5", "*ConfigError: An argument of segdeploy_gate is of a wrong type*"),
        ("budget='long'", "*ConfigError*long*"),
        ("threads=0", "*ConfigError: The number of threads*"),
    ],
)
def test_nonsense_is_told_in_a_sentence(
    pytester: pytest.Pytester, asked: Asked, arguments: str, said: str
) -> None:
    pytester.makepyfile(
        f"""def test_gate(segdeploy_gate): segdeploy_gate("a", "pass", {arguments})"""
    )
    result = pytester.runpytest_inprocess(*LOAD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert not asked


def test_a_size_may_be_written_as_on_the_command_line(
    pytester: pytest.Pytester, asked: Asked
) -> None:
    pytester.makepyfile(
        """def test_gate(segdeploy_gate): segdeploy_gate("a", "pass", size="96x128")"""
    )
    pytester.runpytest_inprocess(*LOAD).assert_outcomes(passed=1)
    assert asked["plan"] == GatePlan(size=(96, 128))


def test_gates_of_fixtures_are_summed_up_and_each_gate_once(
    pytester: pytest.Pytester, asked: Asked
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def unclear(segdeploy_gate):
            segdeploy_gate("a", "inconclusive")

        @pytest.fixture
        def clear(segdeploy_gate):
            segdeploy_gate("a", "pass")
            yield
            segdeploy_gate("a", "improvement")

        def test_unclear(unclear): pass

        def test_clear(clear, segdeploy_gate):
            segdeploy_gate("a", "pass")
            segdeploy_gate("a", "pass")
        """
    )
    result = pytester.runpytest_inprocess(*LOAD)
    result.assert_outcomes(passed=1, skipped=1)
    lines = [line.partition("::")[2] for line in result.outlines if "20 % slower (ratio" in line]
    told = {name: [line for line in lines if line.startswith(name)] for name in ("test_unclear",
            "test_clear")}  # fmt: skip
    assert [line.split(": ")[1] for line in told["test_unclear"]] == ["inconclusive"]
    assert [line.split(": ")[1] for line in told["test_clear"]] == ["pass"] * 3 + ["improvement"]
    assert asked


def test_gates_of_two_workers_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # This test may be in one.
    with plugin._alone():
        assert not list(tmp_path.iterdir())  # Without pytest-xdist there is nobody to wait for.
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    with plugin._alone():
        (lock,) = tmp_path.iterdir()
        with lock.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_starting_pytest_imports_nothing_heavy() -> None:
    code = (
        f"import sys, {PLUGIN}\n"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'typer', 'rich', 'msgspec', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not any(name.startswith('segdeploy.workflows') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_package_registers_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"segdeploy": PLUGIN}
