"""The Markdown that a CI shows beside a build: verdicts, ratios with intervals, one sentence each.

GitHub gives a job a file for it in `GITHUB_STEP_SUMMARY`; what stands there is added to, since
other steps write there as well.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from segdeploy.core.errors import ConfigError
from segdeploy.core.files import append_whole, write_bytes, write_errors
from segdeploy.core.gate import GateResult, MetricVerdict, Verdict
from segdeploy.workflows.run_result import RunResult, StageOutcome, Status

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
_MARKS = {
    "passed": "✅", "failed": "❌", "inconclusive": "❔", "error": "⚠️", "skipped": "⏭️",
    "pass": "✅", "improvement": "🚀", "regression": "❌", "broken": "❌",
    "unjudged": "⏭️",
}  # fmt: skip
_CHECKS = ("export", "verify", "evaluate", "bench", "gate")


def check_outputs(junit: Path | None, summary: Path | None) -> None:
    """Check that what a CI reads can be written, before any work; missing folders are made.

    Afterwards it would be too late: the answer of an hour's work would end as an error.

    Raises:
        ArtifactError: If a file, or GitHub's own summary, cannot be written.
    """
    for file in (junit, summary):
        if file is not None:
            with write_errors(file):
                if file.is_dir():
                    raise IsADirectoryError(errno.EISDIR, "it is a folder")
                file.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=file.parent):
                    pass  # Written beside and renamed, as `write_bytes` does.
    if place := os.environ.get(STEP_SUMMARY):
        with write_errors(Path(place)), Path(place).open("ab"):
            pass


def check_apart(outputs: Iterable[Path | None], inputs: Iterable[Path]) -> None:
    """Check that no output takes the place of what is read, or of another output.

    Raises:
        ConfigError: If one does.
    """
    taken = {file.resolve() for file in inputs}
    for file in filter(None, outputs):
        if file.resolve() in taken:
            raise ConfigError(
                f"{file} would be overwritten: it is read, or is another output as well.",
                hint="Give each output a file of its own.",
            )
        taken.add(file.resolve())


def write_summary(text: str, file: Path | None) -> None:
    """Write the summary to a file, if one is given, and add it to GitHub's, if there is one.

    Where they are the same file, it is added once, and what stands there stays.

    Raises:
        ArtifactError: If one cannot be written.
    """
    place = os.environ.get(STEP_SUMMARY)
    if file is not None and not (place and file.resolve() == Path(place).resolve()):
        write_bytes(file, text.encode(errors="replace"))
    if place:
        with write_errors(Path(place)), Path(place).open("ab", buffering=0) as stream:
            append_whole(stream, b"\n" + text.encode(errors="replace"))


def render_gate(result: GateResult) -> str:
    """Return the summary of one gate."""
    names = f"{_cell(result.candidate)} against {_cell(result.baseline)}"
    lines = [f"## {_mark(result.verdict)} segdeploy gate: {result.verdict}", "", names, ""]
    lines += [_cell(_sentence(result.reason)), ""] if result.reason else []
    if result.metrics:
        lines += [*_metric_table(result.metrics), ""]
        lines += [
            f"- **{_words(metric.name)}**: {_cell(metric.reason)}" for metric in result.metrics
        ]
        lines.append("")
    return "\n".join([*lines, *_warnings([result])]).rstrip() + "\n"


def _metric_table(metrics: Iterable[MetricVerdict]) -> list[str]:
    rows = [
        [
            _words(metric.name), f"{_mark(metric.verdict)} {metric.verdict}",
            _amount(metric.baseline, metric.unit), _amount(metric.candidate, metric.unit),
            _ratio(metric), _interval(metric), _limit(metric),
        ]
        for metric in metrics
    ]  # fmt: skip
    return _table(
        ["metric", "verdict", "baseline", "candidate", "ratio", "interval", "limit"], rows
    )


def render_run(result: RunResult) -> str:
    """Return the summary of a run: a row for each artifact, a sentence for what did not pass."""
    title = f"## {_mark(result.verdict)} segdeploy run: {result.verdict}"
    outcomes = list(result.outcomes)
    lines = [title, "", *_table(_head(), _rows(outcomes)), ""]
    told = [outcome for outcome in outcomes if outcome.status is not Status.PASSED]
    told += [o for o in outcomes if o.gate is not None and o.status is Status.PASSED]
    lines += [
        f"- {_mark(o.status)} **{_cell(o.place)}**: {_cell(_sentence(o.reason))}" for o in told
    ]
    lines += ["", *_warnings([o.gate for o in outcomes if o.gate is not None])]
    if result.is_unchanged:
        lines += ["", "Nothing has changed since the last run: everything was reused."]
    return "\n".join(lines).rstrip() + "\n"


def _head() -> list[str]:
    return ["artifact", *_CHECKS[:2], "mIoU", "p50 ms", "gate", "latency ratio", "interval"]


def _rows(outcomes: Sequence[StageOutcome]) -> list[list[str]]:
    places = dict.fromkeys((o.model, o.artifact) for o in outcomes if o.artifact)
    return [
        _row(place, [o for o in outcomes if (o.model, o.artifact) == place]) for place in places
    ]


def _row(place: tuple[str, str], outcomes: Sequence[StageOutcome]) -> list[str]:
    stages = {outcome.stage: outcome for outcome in outcomes}

    def mark(stage: str) -> str:
        found = stages.get(stage)
        return "" if found is None else f"{_mark(found.status)} {found.kind or found.status}"

    def value(stage: str, name: str, form: str) -> str:
        found = stages.get(stage)
        if found is not None and found.status is not Status.PASSED:
            return mark(stage)
        number = None if found is None else found.values.get(name)
        return "" if number is None else form.format(number)

    gate = stages["gate"].gate if "gate" in stages else None
    latency = None if gate is None else gate.latency
    return [
        _cell("/".join(place)), mark("export"), mark("verify"),
        value("evaluate", "mean_iou", "{:.2%}"), value("bench", "p50_ms", "{:.2f}"), mark("gate"),
        _ratio(latency) if latency else "", _interval(latency) if latency else "",
    ]  # fmt: skip


def _warnings(gates: Sequence[GateResult]) -> list[str]:
    notes = dict.fromkeys(
        str(warning) for gate in gates for warning in gate.environment.get("warnings") or ()
    )
    return [f"> note: {_cell(note)}" for note in notes]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _mark(word: Verdict | Status) -> str:
    return _MARKS[str(word)]


def _words(name: str) -> str:
    return "mIoU" if name == "mean_iou" else name.replace("_", " ")


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}".rstrip()


def _ratio(metric: MetricVerdict) -> str:
    return "" if metric.ratio is None else f"{metric.ratio:.3f}"


def _interval(metric: MetricVerdict) -> str:
    return "" if metric.ratio_ci is None else "{:.3f} to {:.3f}".format(*metric.ratio_ci)


def _limit(metric: MetricVerdict) -> str:
    return f"-{metric.limit:g} points" if metric.name == "mean_iou" else f"{metric.limit:.3f}"


def _sentence(text: str) -> str:
    """Return the first line: the rest of an error is the tail of a converter's log."""
    return text.splitlines()[0] if text else ""


def _cell(text: str) -> str:
    """Return text that ends no table and makes no markup of itself."""
    plain = " ".join(text.split()).replace("\\", "\\\\")
    for letter in "|<>*_`":
        plain = plain.replace(letter, f"\\{letter}")
    return plain
