"""The section "Worth it?": latency against quality as a plot, and what to use each artifact for.

It reads what was measured; `report.worth` decides and `report.advice` words it. Facts on a graph
(borders, operators left in float) come from its manifest, where the export wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from segdeploy.report.advice import Worth, judge_worth
from segdeploy.report.collect import Row
from segdeploy.report.plots import Dot, scatter_plot
from segdeploy.report.worth import Measured, Standing

_BADGES = {
    Standing.FRONT: "passed",
    Standing.DOMINATED: "waiting",
    Standing.FAILED: "failed",
    Standing.UNMEASURED: "",
}
_FRONT, _REFERENCE = 0, 5  # Colours.


def find_worth(rows: Sequence[Row]) -> list[Worth]:
    """Return the answer for each artifact of a run, or nothing where not one was measured."""
    artifacts = [measured_of(row) for row in rows if not row.is_reference]
    is_measured = any(one.latency_ms is not None for one in artifacts)
    return judge_worth(artifacts) if is_measured else []


def measured_of(row: Row) -> Measured:
    """Return what is known of one artifact."""
    manifest, cost, close = row.manifest, row.cost, row.closeness
    failures = tuple(text.partition(":")[0] for text in close.failures) or ("its rules",)
    return Measured(
        name=row.name,
        target=manifest.target or "pytorch-fp32",
        latency_ms=cost.p50_ms,
        latency_interval=cost.interval_ms,
        mean_iou=row.quality.mean_iou,
        flip_rate=close.flip_rate,
        size_mib=row.size_mib,
        memory_mib=cost.peak_memory_mib,
        conditions=(*cost.conditions, str(manifest.io.input), str(manifest.io.output)),
        bench_run=_text(cost.environment.get("bench_run")),
        device=_text(cost.environment.get("device")) or "cpu",
        failures=failures if close.verdict == "failed" else (),
        borders=_count(_int8_facts(row).get("borders")),
        float_activations=_counts(_int8_facts(row).get("float_activations")),
    )


def _int8_facts(row: Row) -> dict[str, Any]:
    found = row.manifest.options.get("int8")
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counts(value: Any) -> dict[str, int]:
    """Return counts by operator; one number alone is of all activations."""
    if (whole := _count(value)) is not None:
        return {"activations": whole}
    plain = value if isinstance(value, dict) else {}
    return {str(name): count for name, each in plain.items() if (count := _count(each))}


def render_worth(rows: Sequence[Row]) -> str:
    """Return the section as HTML."""
    worth = find_worth(rows)
    if not worth:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th><td><span class="badge '
        f'{_BADGES[one.standing]}">{one.standing}</span></td><td>{escape(one.advice)}</td></tr>'
        for one in worth
    )
    plot = _plot(rows, worth)
    card = f'<div class="card">{plot}</div>' if plot else ""
    return (
        f'<h2>Worth it?</h2>{card}<div class="scroll"><table class="says"><thead><tr>'
        '<th scope="col">target</th><th scope="col">standing</th><th scope="col">when to use it'
        f"</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _plot(rows: Sequence[Row], worth: Sequence[Worth]) -> str:
    """Return latency against mIoU, else flips, of those that may be compared with each other."""
    standing = {one.name: one.standing for one in worth}
    found = [(row, measured_of(row)) for row in rows]
    found = [(r, m) for r, m in found if m.latency_ms is not None and not m.failures]
    usual = Counter(m.conditions for _, m in found).most_common(1)
    found = [(r, m) for r, m in found if m.conditions == usual[0][0]]
    has_iou = all(m.mean_iou is not None for _, m in found)
    dots = []
    for row, one in found:
        quality = one.mean_iou if has_iou else 0.0 if row.is_reference else one.flip_rate
        if quality is not None and one.latency_ms is not None:
            dots.append(
                Dot(
                    name=one.name,
                    x=one.latency_ms,
                    y=quality if has_iou else 100 * quality,
                    weight=one.size_mib,
                    color=_REFERENCE if row.is_reference else _FRONT,
                    is_faint=standing.get(one.name) is Standing.DOMINATED,
                )
            )
    if len(dots) < 2:
        return ""
    axis = "mIoU" if has_iou else "flips in %"
    return scatter_plot(f"Latency and {axis}", f"ms to the right, {axis} up, area is MiB", dots)
