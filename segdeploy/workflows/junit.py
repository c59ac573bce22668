"""JUnit XML of a run or a gate, for the test tabs of CI servers.

The form is that of the schema that Jenkins and GitLab read (`junit-10.xsd`): `testsuites` >
`testsuite` > `testcase` with at most one of `failure`, `error`, `skipped`. A failed check is a
`failure`; what could not be done is an `error`. JUnit knows no "do not know": an inconclusive gate
is `skipped` with a message that starts with `inconclusive`, and the exit code 3 says it again.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from segdeploy.core.files import write_bytes
from segdeploy.core.gate import GateResult, MetricVerdict
from segdeploy.workflows.run_result import RunResult, StageOutcome, Status, gate_status

# What XML 1.0 cannot hold, and the colours of a terminal; logs of converters are full of both.
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {
    Status.FAILED: "failure", Status.ERROR: "error", Status.SKIPPED: "skipped",
    Status.INCONCLUSIVE: "skipped",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test case: `suite` groups, `owner` is what was tested, `name` is the check."""

    suite: str
    owner: str
    name: str
    status: Status
    kind: str = ""
    message: str = ""
    seconds: float = 0.0


def run_cases(result: RunResult) -> list[Case]:
    """Return a case for each artifact and stage."""
    return [_stage_case(outcome) for outcome in result.outcomes]


def _stage_case(outcome: StageOutcome) -> Case:
    return Case(
        suite=outcome.model, owner=outcome.artifact or outcome.model, name=outcome.stage,
        status=outcome.status, kind=outcome.kind, message=outcome.reason, seconds=outcome.seconds,
    )  # fmt: skip


def gate_cases(result: GateResult) -> list[Case]:
    """Return a case for each metric; of a candidate that is broken, one for the gate itself."""
    owner = Path(result.candidate).name
    if not result.metrics:
        status = gate_status(result.verdict)
        return [
            Case(
                suite="gate", owner=owner, name="gate", status=status, kind=str(result.verdict),
                message=result.reason, seconds=result.seconds,
            )
        ]  # fmt: skip
    share = result.seconds / len(result.metrics)
    return [_metric_case(owner, metric, share) for metric in result.metrics]


def _metric_case(owner: str, metric: MetricVerdict, seconds: float) -> Case:
    return Case(
        suite="gate", owner=owner, name=metric.name, status=gate_status(metric.verdict),
        kind=str(metric.verdict), message=metric.reason, seconds=seconds,
    )  # fmt: skip


def write_junit(file: Path, cases: Sequence[Case]) -> None:
    """Write the cases as a file.

    Raises:
        ArtifactError: If it cannot be written.
    """
    write_bytes(file, render_junit(cases))


def render_junit(cases: Sequence[Case]) -> bytes:
    """Return the document: a suite for each `suite` of the cases, in their order."""
    root = ET.Element("testsuites", {"name": "segdeploy", **_counts(cases, with_skipped=False)})
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    for index, suite in enumerate(dict.fromkeys(case.suite for case in cases)):
        own = [case for case in cases if case.suite == suite]
        about = {
            "name": _text(f"segdeploy.{suite}"), "id": str(index), "package": "segdeploy",
            "hostname": _text(socket.gethostname()) or "localhost", "timestamp": now,
        }  # fmt: skip
        element = ET.SubElement(root, "testsuite", {**about, **_counts(own)})
        for case in own:
            element.append(_element(case))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _counts(cases: Sequence[Case], *, with_skipped: bool = True) -> dict[str, str]:
    def count(kind: str) -> str:
        return str(sum(_ELEMENTS.get(case.status) == kind for case in cases))

    found = {"tests": str(len(cases)), "failures": count("failure"), "errors": count("error")}
    if with_skipped:
        found["skipped"] = count("skipped")
    return {**found, "time": f"{sum(case.seconds for case in cases):.3f}"}


def _element(case: Case) -> ET.Element:
    element = ET.Element(
        "testcase",
        {
            "name": _text(case.name), "time": f"{case.seconds:.3f}",
            "classname": _text(f"segdeploy.{case.suite}.{case.owner}"),
        },
    )  # fmt: skip
    message = _text(case.message)
    if case.status is Status.PASSED:
        if message:
            ET.SubElement(element, "system-out").text = message
        return element
    if case.status is Status.INCONCLUSIVE:
        message = f"inconclusive: {message}"
    lines = message.splitlines()
    about = {"message": lines[0] if lines else str(case.status)}
    kind = _ELEMENTS[case.status]
    if kind != "skipped":
        about["type"] = _text(case.kind or str(case.status))
    ET.SubElement(element, kind, about).text = message
    return element


def _text(value: str) -> str:
    return _FORBIDDEN.sub("", _COLOURS.sub("", value))
