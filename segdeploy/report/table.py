"""The one table of a report, as text cells: the Markdown and the page show the same words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from segdeploy.report.collect import Row, RunSummary
from segdeploy.report.comparison import find_worth

HEADINGS = (
    "target", "verdict", "size MiB", "p50 ms", "p90 ms", "/ eager", "img/s", "peak MiB", "mIoU",
    "Δ points", "flips", "hard flips",
)  # fmt: skip
MISSING = "-"


def cells(row: Row) -> tuple[str, ...]:
    """Return one text per heading."""
    cost, quality, closeness = row.cost, row.quality, row.closeness
    ratio = number(cost.ratio, 2)
    return (
        row.name,
        closeness.verdict,
        number(row.size_mib, 1),
        number(cost.p50_ms, 1),
        number(cost.p90_ms, 1),
        ratio if cost.is_same_run or ratio == MISSING else f"{ratio}*",
        number(cost.throughput_img_s, 1),
        number(cost.peak_memory_mib, 0),
        number(quality.mean_iou, 4),
        signed(quality.delta_points),
        share(closeness.flip_rate),
        share(closeness.hard_flip_rate),
    )


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point; small ones keep two that count."""
    if value is None:
        return MISSING
    if value and abs(value) < 10 ** (1 - digits):
        return f"{value:.2g}"
    return f"{value:,.{digits}f}".replace(",", " ")


def signed(value: float | None) -> str:
    """Return a difference in percentage points with its sign."""
    return MISSING if value is None else f"{round(value, 2) + 0.0:+.2f}"


def share(value: float | None) -> str:
    """Return a share of pixels: 0, percent, or a power of ten below 0.01 %."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    return f"{100 * value:.2f} %" if value >= 1e-4 else f"{value:.0e}"


def conditions(summary: RunSummary) -> list[str]:
    """Return how the latencies were measured: one text per distinct set of conditions."""
    found = [" · ".join(c.words) for row in summary.rows if (c := row.cost.conditions)]
    return list(dict.fromkeys(text for text in found if text))


def data_sets(summary: RunSummary) -> list[str]:
    """Return what the mIoU refers to: data set and number of images."""
    found = [
        f"{row.quality.data} ({number(row.quality.num_images, 0)} images)"
        for row in summary.rows
        if row.quality.data
    ]
    return list(dict.fromkeys(found))


def notes(summary: RunSummary) -> list[str]:
    """Return what a reader must know about the numbers of a report and the weights."""
    texts = []
    if any(row.cost.ratio is not None and not row.cost.is_same_run for row in summary.rows):
        texts.append("* measured in another run than eager PyTorch: less certain.")
    if any(row.name.startswith("onnx-fp16") for row in summary.rows):
        texts.append("fp16 ONNX is meant for GPUs and NPUs; on a CPU it is slow.")
    return texts + row_notes(summary.rows)


def row_notes(rows: Sequence[Row]) -> list[str]:
    """Return what must be known of rows wherever they are shown."""
    texts = [row.manifest.note for row in rows if row.manifest.note]
    if any(not row.manifest.trained for row in rows):
        texts.append("Some weights were never trained: their quality says nothing.")
    texts += [f"{row.name}: {why}" for row in rows if (why := _why_this_output(row))]
    texts += [f"{row.name}: scored with {row.quality.views}" for row in rows if row.quality.views]
    for row in rows:
        warnings = row.cost.environment.get("warnings")
        known = warnings if isinstance(warnings, list) else []
        texts += [f"{row.name}: {warning}" for warning in known]
    return _merged(texts, {row.name for row in rows})


def _why_this_output(row: Row) -> str | None:
    """Return why `export --output auto` gave it its output."""
    choice = row.manifest.options.get("output_auto")
    why = choice.get("why") if isinstance(choice, dict) else None
    return why if isinstance(why, str) else None


def _merged(texts: Sequence[str], names: Collection[str]) -> list[str]:
    """Say a warning of several targets once: `a, b: text`; without names if it is of them all."""
    owners: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        owner, _, said = text.partition(": ")
        if owner in names and said:
            owners.setdefault(said, []).append(owner)
        else:
            owners.setdefault(text, [])
    return [
        said if len(found) in {0, len(names)} else f"{', '.join(found)}: {said}"
        for said, found in owners.items()
    ]


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>&|#~!])")


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def render_markdown(summary: RunSummary) -> str:
    """Return the report's table and notes as Markdown."""
    lines = [
        f"# {escape_markdown(summary.name)}",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'|'.join([' :-- '] * 2 + [' --: '] * (len(HEADINGS) - 2))}|",
    ]
    for row in summary.rows:
        shown = [escape_markdown(cell) for cell in cells(row)]
        lines.append(f"| {' | '.join(shown)} |")
    lines.append("")
    if found := conditions(summary):
        lines.append(f"Latency: {escape_markdown('; '.join(found))}.  ")
    if found := data_sets(summary):
        lines.append(f"mIoU: {escape_markdown('; '.join(found))}; Δ to the checkpoint.  ")
    lines += [f"- {escape_markdown(text)}" for text in notes(summary)]
    lines += [
        f"- **{escape_markdown(one.name)}**: {escape_markdown(one.advice)}"
        for one in find_worth(summary.rows)
    ]
    for row in summary.rows:
        owner = escape_markdown(row.name)
        lines += [f"- **{owner}** broke {escape_markdown(text)}" for text in row.closeness.failures]
    lines += [f"- Problem: {escape_markdown(text)}" for text in summary.problems]
    return "\n".join(lines).rstrip() + "\n"
