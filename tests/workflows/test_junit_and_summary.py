"""What CI servers read of a run and of a gate: valid JUnit XML, Markdown whose tables hold."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from segdeploy.core.gate import GateResult, MetricVerdict, Verdict
from segdeploy.workflows.junit import gate_cases, render_junit, run_cases, write_junit
from segdeploy.workflows.run_result import RunResult, StageOutcome, Status
from segdeploy.workflows.summary import render_gate, render_run, write_summary

# Of the schema that Jenkins' xunit plugin validates with (junit-10.xsd): the attributes each
# element may have, those it must have, and its children in order.
_SUITE = {"name", "id", "package", "hostname", "timestamp", "tests", "failures", "errors",
          "skipped", "time", "group", "url", "file", "log", "version"}  # fmt: skip
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (
        {"name", "time", "tests", "failures", "errors", "disabled"}, set(), {"testsuite"},
    ),
    "testsuite": (
        _SUITE, {"name", "tests"}, {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "classname", "time", "assertions", "status", "class", "file", "line", "group"},
        {"name"}, {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"message", "type"}, set(), set()),
    "error": ({"message", "type"}, set(), set()),
    "skipped": ({"message", "type"}, set(), set()),
    "system-out": (set(), set(), set()),
}  # fmt: skip


def check_schema(element: ET.Element) -> None:
    allowed, required, children = SCHEMA[element.tag]
    assert required <= set(element.attrib) <= allowed, element.tag
    assert {child.tag for child in element} <= children
    for name in {"tests", "failures", "errors", "skipped", "id"} & set(element.attrib):
        assert element.attrib[name].isdigit()
    if "time" in element.attrib:
        assert float(element.attrib["time"]) >= 0
    if "timestamp" in element.attrib:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", element.attrib["timestamp"])
    if element.tag == "testcase":
        assert sum(child.tag in {"skipped", "error", "failure"} for child in element) <= 1
    for child in element:
        check_schema(child)


def parsed(document: bytes) -> ET.Element:
    root = ET.fromstring(document)  # noqa: S314  our own
    check_schema(root)
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{tag}"))
    assert int(root.attrib["tests"]) == sum(int(suite.attrib["tests"]) for suite in root)
    return root


def metric(name: str, verdict: Verdict, ratio: float | None = 1.07) -> MetricVerdict:
    return MetricVerdict(
        name=name, unit="ms", verdict=verdict, baseline=10.0, candidate=10.7, ratio=ratio,
        ratio_ci=None if ratio is None else (1.05, 1.09), limit=1.05,
        minimal_detectable_effect=0.02, reason=f"{name} is {verdict} | <b>",
    )  # fmt: skip


def gate(verdict: Verdict, *metrics: MetricVerdict) -> GateResult:
    return GateResult(
        baseline="runs/base/m/onnx-fp32", candidate="runs/head/m/onnx-fp32", verdict=verdict,
        reason="7 % slower", metrics=metrics, seconds=8.0,
        environment={"warnings": ["the machine is busy"]},
    )  # fmt: skip


@pytest.fixture
def run_result() -> RunResult:
    log = "The converter failed.\nhint\n\x1b[31mred\x1b[0m \x00\x08 <tag> & \ud800"
    told = [
        ("a", "export", Status.PASSED, ""),
        ("a", "evaluate", Status.PASSED, "mIoU 61 %"),
        ("b", "export", Status.ERROR, log),
        ("c", "verify", Status.FAILED, "flips"),
        ("d", "gate", Status.SKIPPED, "no baseline"),
        ("e", "gate", Status.INCONCLUSIVE, "too noisy"),
    ]
    outcomes = [
        StageOutcome(
            model="m", artifact=artifact, stage=stage, status=status, reason=reason, kind="",
            values={"mean_iou": 0.61} if stage == "evaluate" else {}, seconds=0.5,
            exit_code={Status.ERROR: 2, Status.FAILED: 1, Status.INCONCLUSIVE: 3}.get(status, 0),
        )
        for artifact, stage, status, reason in told
    ]  # fmt: skip
    bad = gate(Verdict.REGRESSION, metric("latency", Verdict.REGRESSION))
    report = StageOutcome(model="n", artifact="", stage="report", status=Status.PASSED)
    return RunResult(out=Path("runs/head"), outcomes=[
        *outcomes, StageOutcome.of_gate("n", "onnx-fp32", bad), report,
    ])  # fmt: skip


def test_each_status_becomes_the_element_that_means_it(run_result: RunResult) -> None:
    root = parsed(render_junit(run_cases(run_result)))
    found = {
        (case.attrib["classname"], case.attrib["name"]): next(
            (child.tag for child in case if child.tag != "system-out"), "passed"
        )
        for case in root.iter("testcase")
    }
    assert found == {
        ("segdeploy.m.a", "export"): "passed",
        ("segdeploy.m.a", "evaluate"): "passed",
        ("segdeploy.m.b", "export"): "error",
        ("segdeploy.m.c", "verify"): "failure",
        ("segdeploy.m.d", "gate"): "skipped",
        ("segdeploy.m.e", "gate"): "skipped",
        ("segdeploy.n.onnx-fp32", "gate"): "failure",
        ("segdeploy.n.n", "report"): "passed",
    }
    assert [suite.attrib["name"] for suite in root] == ["segdeploy.m", "segdeploy.n"]
    messages = {child.attrib["message"] for child in root.iter("skipped")}
    assert messages == {"no baseline", "inconclusive: too noisy"}
    assert next(root.iter("failure")).attrib["message"] == "flips"


def test_logs_with_bytes_that_xml_cannot_hold_are_cleaned(run_result: RunResult) -> None:
    error = next(parsed(render_junit(run_cases(run_result))).iter("error"))
    assert error.attrib["message"] == "The converter failed."
    assert error.text == "The converter failed.\nhint\nred  <tag> & "


def test_a_gate_is_a_case_for_each_metric_and_a_broken_candidate_one(tmp_path: Path) -> None:
    found = gate(
        Verdict.REGRESSION,
        metric("latency", Verdict.REGRESSION),
        metric("memory", Verdict.PASS),
        metric("cold_start", Verdict.INCONCLUSIVE),
    )
    write_junit(tmp_path / "gate.xml", gate_cases(found))
    root = parsed((tmp_path / "gate.xml").read_bytes())
    assert [len(case) and case[0].tag for case in root.iter("testcase")] == [
        "failure", "system-out", "skipped",
    ]  # fmt: skip
    root = parsed(render_junit(gate_cases(gate(Verdict.BROKEN))))
    (case,) = root.iter("testcase")
    assert case[0].attrib == {"message": "7 % slower", "type": "broken"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> list[list[str]]:
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    return rows


def test_a_runs_summary_has_a_row_for_each_artifact_and_a_sentence_for_what_went_wrong(
    run_result: RunResult,
) -> None:
    text = render_run(run_result)
    assert text.startswith("## ❌ segdeploy run: failed")
    head, _, *rows = tables(text)
    assert [row[0] for row in rows] == ["m/a", "m/b", "m/c", "m/d", "m/e", "n/onnx-fp32"]
    by_name = dict(zip(head, rows[0], strict=True))
    assert by_name["mIoU"] == "61.00%"
    by_name = dict(zip(head, rows[-1], strict=True))
    assert (by_name["gate"], by_name["latency ratio"], by_name["interval"]) == (
        "❌ regression", "1.070", "1.050 to 1.090",
    )  # fmt: skip
    told = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line.split("**")[1] for line in told] == [
        "m/b/export", "m/c/verify", "m/d/gate", "m/e/gate", "n/onnx-fp32/gate",
    ]  # fmt: skip
    assert "hint" not in text  # The first line of an error only.
    assert "> note: the machine is busy" in text


def test_a_gates_summary_has_ratio_and_interval_and_no_markup_of_others() -> None:
    bad = metric("latency", Verdict.REGRESSION)
    text = render_gate(gate(Verdict.REGRESSION, bad, metric("mean_iou", Verdict.PASS, None)))
    head, _, first, second = tables(text)
    assert dict(zip(head, first, strict=True))["interval"] == "1.050 to 1.090"
    assert second[0] == "mIoU"
    assert second[4] == ""
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "7 % slower" in render_gate(gate(Verdict.BROKEN))


def test_githubs_own_file_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tmp_path / "step.md"
    step.write_text("another step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    write_summary("## one\n", tmp_path / "own.md")
    write_summary("## two\n", None)
    assert step.read_text() == "another step\n\n## one\n\n## two\n"
    assert (tmp_path / "own.md").read_text() == "## one\n"
    monkeypatch.chdir(tmp_path)
    write_summary("## both\n", Path("step.md"))  # The same file: nothing twice, nothing lost.
    assert step.read_text() == "another step\n\n## one\n\n## two\n\n## both\n"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    write_summary("## three\n", None)
    assert "three" not in step.read_text()
